-- What a script of wrk tells when it is over: one line that `wrk.rs` reads.
function done(summary, latency)
  local errors = summary.errors
  local ms = function(share) return latency:percentile(share) / 1000 end
  io.write(string.format("\n#json {\"requests\":%d,\"seconds\":%.6f,\"not_2xx\":%d,\"broken\":%d,"
    .. "\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f}\n",
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    ms(50), ms(90), ms(99), ms(99.9), latency.max / 1000))
end
