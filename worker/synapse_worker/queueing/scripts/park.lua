-- Parks leased jobs that their token still owns, with their original scores.
-- KEYS: the tenant's parked jobs, parked, leases, claims, then arq's in-progress key of each job.
-- ARGV: tenant, then per job: id, token.
-- Returns the ids that were not ours any more.
local lost = {}
for i = 5, #KEYS do
  local at = 2 + (i - 5) * 2
  local id, token = ARGV[at], ARGV[at + 1]
  local claim = redis.call('HGET', KEYS[4], id)
  if claim and string.sub(claim, 1, #token + 1) == token .. '|' then
    local added = redis.call('ZADD', KEYS[1], string.match(claim, '^[^|]*|([^|]*)|'), id)
    if added == 1 then redis.call('HINCRBY', KEYS[2], ARGV[1], 1) end
    redis.call('ZREM', KEYS[3], id)
    redis.call('HDEL', KEYS[4], id)
    redis.call('DEL', KEYS[i])
  else
    lost[#lost + 1] = id
  end
end
return lost
