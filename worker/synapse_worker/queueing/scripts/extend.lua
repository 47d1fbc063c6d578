-- Prolongs leases that their token still owns.
-- KEYS: leases, claims, then arq's in-progress key of each job.  ARGV: lease in ms, then per job: id, token.
-- Returns the ids that are lost: leased to another token, or to nobody.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(ARGV[1])
local lost = {}
for i = 3, #KEYS do
  local at = 2 + (i - 3) * 2
  local id, token = ARGV[at], ARGV[at + 1]
  local claim = redis.call('HGET', KEYS[2], id)
  if claim and string.sub(claim, 1, #token + 1) == token .. '|' then
    redis.call('ZADD', KEYS[1], now + lease, id)
    redis.call('SET', KEYS[i], '1', 'PX', lease)
  else
    lost[#lost + 1] = id
  end
end
return lost
