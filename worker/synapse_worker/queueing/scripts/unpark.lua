-- Lets parked jobs wait for a slot again, with their original scores.
-- KEYS: the tenant's parked jobs, parked, again.  ARGV: tenant, then job ids.  Returns how many.
local moved = 0
for i = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score then
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('ZADD', KEYS[3], score, ARGV[i])
    moved = moved + 1
  end
end
local left = redis.call('ZCARD', KEYS[1])
if left == 0 then redis.call('HDEL', KEYS[2], ARGV[1]) else redis.call('HSET', KEYS[2], ARGV[1], left) end
return moved
