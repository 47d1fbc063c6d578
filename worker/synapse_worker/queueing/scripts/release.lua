-- Ends jobs that their token still owns: lease, claim and all keys of the job go, arq's result is left behind.
-- KEYS: leases, claims, then per job: arq's job, retry, in-progress and result key, or none of them (a cluster: the
-- caller removes them).
-- ARGV: how long results live in ms, then per job: id, token, result ('' = none).
-- Returns the ids that were not ours any more.
local ids = {}
for at = 2, #ARGV, 3 do ids[#ids + 1] = ARGV[at] end
if #ids == 0 then return {} end
local claims = redis.call('HMGET', KEYS[2], unpack(ids))
local ours, gone, lost = {}, {}, {}
for n, id in ipairs(ids) do
  local key, token, result = 3 + (n - 1) * 4, ARGV[n * 3], ARGV[n * 3 + 1]
  if claims[n] and string.sub(claims[n], 1, #token + 1) == token .. '|' then
    ours[#ours + 1] = id
    if KEYS[key] then
      for i = key, key + 2 do gone[#gone + 1] = KEYS[i] end
      if result ~= '' then redis.call('SET', KEYS[key + 3], result, 'PX', ARGV[1]) end
    end
  else
    lost[#lost + 1] = id
  end
end
if #ours > 0 then
  redis.call('ZREM', KEYS[1], unpack(ours))
  redis.call('HDEL', KEYS[2], unpack(ours))
  if #gone > 0 then redis.call('DEL', unpack(gone)) end
end
return lost
