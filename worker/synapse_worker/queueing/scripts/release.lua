-- Ends jobs that their token still owns: lease, claim and all keys of the job go, arq's result is left behind.
-- KEYS: leases, claims, then per job: arq's job, retry, in-progress and result key.
-- ARGV: how long results live in ms, then per job: id, token, result ('' = none).
-- Returns the ids that were not ours any more.
local lost = {}
for i = 3, #KEYS, 4 do
  local at = 2 + (i - 3) / 4 * 3
  local id, token, result = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local claim = redis.call('HGET', KEYS[2], id)
  if claim and string.sub(claim, 1, #token + 1) == token .. '|' then
    redis.call('ZREM', KEYS[1], id)
    redis.call('HDEL', KEYS[2], id)
    redis.call('DEL', KEYS[i], KEYS[i + 1], KEYS[i + 2])
    if result ~= '' then redis.call('SET', KEYS[i + 3], result, 'PX', ARGV[1]) end
  else
    lost[#lost + 1] = id
  end
end
return lost
