-- wrk: producers' requests prepared beforehand, each sent with an id of its own.
-- Arguments after `--`: the file of prepared requests (for each a line with its length, then the request with
-- `{id}` wherever the id stands) and a word that makes the ids of this run its own. An id is as long as the word
-- and 13 characters, so that the length of a body does not depend on it.
dofile("done.lua")
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  requests = {}
  local file = assert(io.open(args[1], "rb"))
  while true do
    local length = file:read("*l")
    if not length then break end
    local text, pieces, from = file:read(tonumber(length)), {}, 1
    while true do
      local first, last = text:find("{id}", from, true)
      pieces[#pieces + 1] = text:sub(from, (first or 0) - 1)
      if not first then break end
      from = last + 1
    end
    requests[#requests + 1] = pieces
  end
  file:close()
  count, counter, format, concat = #requests, 0, args[2] .. "-%02d-%09d", table.concat
end

function request()
  counter = counter + 1
  return concat(requests[counter % count + 1], string.format(format, number, counter))
end
