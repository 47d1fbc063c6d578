-- Puts a job id into its queue unless it is there, given back, leased, parked, or a suspect.
-- KEYS: Q, again, leases, suspects and, where it may be parked, its tenant's parked jobs.  ARGV: id.  Returns 1 when it was added.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, key in ipairs(KEYS) do
  if redis.call('ZSCORE', key, ARGV[1]) then return 0 end
end
return redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
