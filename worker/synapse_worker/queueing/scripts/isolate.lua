-- Says whether a worker shall stop claiming until it is empty, so that it can take a suspect.
-- KEYS: suspects, isolating.  ARGV: worker id, how long its word counts in ms.
-- Returns 1 = it shall; 0 = there are as many such workers as suspects wait, or none waits.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('ZCARD', KEYS[2]) >= redis.call('ZCARD', KEYS[1]) then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return 1
