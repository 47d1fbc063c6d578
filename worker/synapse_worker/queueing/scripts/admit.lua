-- Counts a job that is about to be enqueued, unless as many as allowed are queued, active or about to be.
-- KEYS: admission (hash: base = jobs in the queues, version, rebased), pending (zset: job id -> since when, ms).
-- ARGV: jobs allowed, job id.
-- Returns 1 when it is counted, 0 when there are too many, -1 when nobody has counted the queues yet.
local base = redis.call('HGET', KEYS[1], 'base')
if not base then return -1 end
if redis.call('ZSCORE', KEYS[2], ARGV[2]) then return 1 end
if base + redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[1]) then return 0 end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000), ARGV[2])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
