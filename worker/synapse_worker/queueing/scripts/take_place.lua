-- Takes a place among a tenant's queued jobs, unless as many as allowed are taken; a job that has one keeps it.
-- KEYS: the tenant's queued (zset: job id -> since when, ms).  ARGV: places, job id.  Returns 1 when it has one.
if redis.call('ZSCORE', KEYS[1], ARGV[2]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000), ARGV[2])
return 1
