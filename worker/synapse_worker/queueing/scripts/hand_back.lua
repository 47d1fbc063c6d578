-- Gives jobs back that their token still owns, out of reach of stock arq workers, which would start them anew.
-- KEYS: again or suspects, leases, claims, then arq's in-progress key of each job, or none of them (a cluster).
-- ARGV: per job: id, token, delay in ms ('' = keep the original score, ahead of younger jobs).
-- Returns the ids that were not ours any more.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lost = {}
for i = 1, #ARGV / 3 do
  local at = 1 + (i - 1) * 3
  local id, token, delay = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local claim = redis.call('HGET', KEYS[3], id)
  if claim and string.sub(claim, 1, #token + 1) == token .. '|' then
    local score = string.match(claim, '^[^|]*|([^|]*)|')
    if delay ~= '' then score = now + tonumber(delay) end
    redis.call('ZADD', KEYS[1], score, id)
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    if KEYS[3 + i] then redis.call('DEL', KEYS[3 + i]) end
  else
    lost[#lost + 1] = id
  end
end
return lost
