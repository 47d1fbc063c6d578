-- Reserves places for a tenant's jobs, up to its limit; a job that has one keeps it and gets a new deadline.
-- KEYS: the tenant's running.  ARGV: limit, how long a reservation holds in ms, then job ids, oldest first.
-- Returns the ids that got none.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local free = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1])
local deadline = now + ARGV[2]
local refused = {}
for i = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], deadline, ARGV[i])
  elseif free > 0 then
    free = free - 1
    redis.call('ZADD', KEYS[1], deadline, ARGV[i])
  else
    refused[#refused + 1] = ARGV[i]
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return refused
