-- Counts the jobs of a queue; writes nothing.
-- KEYS: Q, again, suspects, leases, parked.
-- Returns {in Q, in again, suspects, leases, those of them that have run out, parked, ms that the first job has been
-- due: '' when none waits}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local parked = 0
for _, count in ipairs(redis.call('HVALS', KEYS[5])) do parked = parked + count end
local oldest
for i = 1, 2 do
  local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if first[1] then oldest = math.max(oldest or 0, now - tonumber(first[2])) end
end
return {
  redis.call('ZCARD', KEYS[1]),
  redis.call('ZCARD', KEYS[2]),
  redis.call('ZCARD', KEYS[3]),
  redis.call('ZCARD', KEYS[4]),
  redis.call('ZCOUNT', KEYS[4], '-inf', now),
  parked,
  oldest and string.format('%.0f', oldest) or '',
}
