-- wrk: webhooks prepared and signed beforehand, each request with a key of its own.
-- Arguments after `--`: the file of prepared webhooks (for each a line with two lengths, then the
-- header lines and the body), a word that makes the keys of this run its own, and optionally the
-- word `close` for one connection a request, as Lago sends.
dofile("done.lua")
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  heads, bodies = {}, {}
  local connection = args[3] == "close" and "Connection: close\r\n" or ""
  local file = assert(io.open(args[1], "rb"))
  while true do
    local line = file:read("*l")
    if not line then break end
    local head, body = line:match("^(%d+) (%d+)$")
    heads[#heads + 1] = "POST /webhooks/lago HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. connection
      .. file:read(tonumber(head)) .. "X-Lago-Unique-Key: " .. args[2]
    bodies[#bodies + 1] = "\r\n\r\n" .. file:read(tonumber(body))
  end
  file:close()
  count, counter, format = #heads, 0, string.format
end

function request()
  counter = counter + 1
  local which = counter % count + 1
  return heads[which] .. format("-%02d-%09d", number, counter) .. bodies[which]
end
