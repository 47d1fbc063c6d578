-- Sets the number of jobs to what was counted in the queues, unless jobs were admitted while that was counted.
-- KEYS: admission, pending.  ARGV: version before the queues were counted ('' = none), what was counted, ms after which
-- it is set whatever was admitted meanwhile, ms after which a pending job is not waited for any more.
-- Returns 1 when it was set.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[4])
local version, rebased = unpack(redis.call('HMGET', KEYS[1], 'version', 'rebased'))
-- A pending job may be in a queue already or not yet, so with one the count is exact only once it has settled.
local exact = (version or '') == ARGV[1] and redis.call('ZCARD', KEYS[2]) == 0
if exact or not rebased or now - rebased >= tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'base', ARGV[2], 'rebased', string.format('%.0f', now))
  return 1
end
return 0
