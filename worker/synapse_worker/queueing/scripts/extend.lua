-- Prolongs leases that their token still owns.
-- KEYS: leases, claims, then arq's in-progress key of each job, or none of them (a cluster).
-- ARGV: lease in ms, then per job: id, token.
-- Returns the ids that are lost: leased to another token, or to nobody.
local ids = {}
for at = 2, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
if #ids == 0 then return {} end
local t = redis.call('TIME')
local deadline = t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[1]
local claims = redis.call('HMGET', KEYS[2], unpack(ids))
local leases, lost = {}, {}
for n, id in ipairs(ids) do
  local token = ARGV[n * 2 + 1]
  if claims[n] and string.sub(claims[n], 1, #token + 1) == token .. '|' then
    leases[#leases + 1] = deadline
    leases[#leases + 1] = id
    if KEYS[2 + n] then redis.call('SET', KEYS[2 + n], '1', 'PX', ARGV[1]) end
  else
    lost[#lost + 1] = id
  end
end
if #leases > 0 then redis.call('ZADD', KEYS[1], unpack(leases)) end
return lost
