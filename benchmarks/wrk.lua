-- Sends prepared requests: wrk can not sign, so each thread has a file of request targets, one a line.
-- Arguments: the method, the files' name without ".<thread>", the length of a body.
local threads = {}

function setup(thread)
   thread:set("number", #threads)
   threads[#threads + 1] = thread
end

function init(args)
   method = args[1]
   targets = {}
   for line in io.lines(args[2] .. "." .. number) do
      targets[#targets + 1] = line
   end
   local length = tonumber(args[3])
   tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n"
   if method == "PUT" then
      tail = tail .. "Content-Type: image/jpeg\r\nContent-Length: " .. length .. "\r\n"
   end
   tail = tail .. "\r\n" .. string.rep("x", length)
   position = 0
   missing = 0
end

function request()
   position = position + 1
   if position > #targets then
      position = 1
      if method == "PUT" then
         missing = missing + 1
      end
   end
   return method .. " " .. targets[position] .. tail
end

function done(summary, latency, requests)
   local missing = 0
   for _, thread in ipairs(threads) do
      missing = missing + thread:get("missing")
   end
   local errors = summary.errors
   io.write(string.format("RESULT %d %d %d %d %d %d %d\n",
      summary.requests, summary.duration, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout, missing,
      latency:percentile(50), latency:percentile(99)))
end
