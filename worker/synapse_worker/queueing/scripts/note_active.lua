-- Notes that the queues of tenants hold jobs, now.
-- KEYS: active tenants.  ARGV: entries that were not noted for so many us are dropped (0 = none), then tenants.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[i]) end
if tonumber(ARGV[1]) > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[1])) end
