-- Looks for due work and, on the way, returns expired leases.
-- KEYS: Q, again, leases, claims, suspects.  ARGV: most ids per set, how many of Q's due ids to pass over.
-- Returns {number of expired leases, number of suspects, due of again [id, score, ...], due of Q [id, score, ...]}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)
for _, id in ipairs(expired) do
  -- The original score keeps a recovered job ahead of younger ones.
  local claim = redis.call('HGET', KEYS[4], id)
  local score = claim and string.match(claim, '^[^|]*|([^|]*)|') or now
  redis.call('ZADD', KEYS[2], score, id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('HDEL', KEYS[4], id)
end
local again = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local fresh = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[1])
return {#expired, redis.call('ZCARD', KEYS[5]), again, fresh}
