-- Says which of some jobs wait and are due; writes nothing.
-- KEYS: Q, again.  ARGV: job ids.  Returns [id, 1 = in Q or 2 = in again, ...].
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = {}
for source = 1, 2 do
  for n, score in ipairs(redis.call('ZMSCORE', KEYS[source], unpack(ARGV))) do
    if score and tonumber(score) <= now then
      due[#due + 1] = ARGV[n]
      due[#due + 1] = tostring(source)
    end
  end
end
return due
