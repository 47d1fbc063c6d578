-- Parks leased jobs that their token still owns, with their original scores.
-- KEYS: the tenant's parked jobs, parked, leases, claims, then arq's in-progress key of each job, or none (a cluster).
-- ARGV: tenant, then per job: id, token.
-- Returns the ids that were not ours any more.
local lost = {}
for n = 1, (#ARGV - 1) / 2 do
  local id, token = ARGV[n * 2], ARGV[n * 2 + 1]
  local claim = redis.call('HGET', KEYS[4], id)
  if claim and string.sub(claim, 1, #token + 1) == token .. '|' then
    local added = redis.call('ZADD', KEYS[1], string.match(claim, '^[^|]*|([^|]*)|'), id)
    if added == 1 then redis.call('HINCRBY', KEYS[2], ARGV[1], 1) end
    redis.call('ZREM', KEYS[3], id)
    redis.call('HDEL', KEYS[4], id)
    if KEYS[4 + n] then redis.call('DEL', KEYS[4 + n]) end
  else
    lost[#lost + 1] = id
  end
end
return lost
