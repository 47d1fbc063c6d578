-- Takes candidates that `peek` saw, in the order given, until enough are taken.
-- KEYS: Q, again or suspects, leases, claims, then arq's in-progress key of each candidate.
-- ARGV: how many to take, lease in ms, worker id, then per candidate: id, 1 (from the second key) or 0 (from Q), token.
-- Returns [id, original score, ...] of what was taken. A candidate that a stock arq worker runs stays where it is.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local want, lease, worker = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local taken = {}
for i = 5, #KEYS do
  if #taken >= want * 2 then break end
  local at = 4 + (i - 5) * 3
  local id, source, token = ARGV[at], KEYS[1], ARGV[at + 2]
  local returned = ARGV[at + 1] == '1'
  if returned then source = KEYS[2] end
  local score = redis.call('ZSCORE', source, id)
  if score then
    if redis.call('HEXISTS', KEYS[4], id) == 1 then
      redis.call('ZREM', source, id) -- the same job enqueued twice: it is leased already
    elseif returned or redis.call('EXISTS', KEYS[i]) == 0 then
      redis.call('ZREM', source, id)
      redis.call('ZADD', KEYS[3], now + lease, id)
      redis.call('HSET', KEYS[4], id, token .. '|' .. score .. '|' .. worker)
      -- A stock worker watches this key between its look and its own claim, so it can never take the same job.
      redis.call('SET', KEYS[i], worker, 'PX', lease)
      taken[#taken + 1] = id
      taken[#taken + 1] = score
    end
  end
end
return taken
