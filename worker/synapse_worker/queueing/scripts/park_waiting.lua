-- Parks jobs straight from their queue, where nobody has leased them.
-- KEYS: Q, the tenant's parked jobs, parked, then arq's in-progress key of each job, or none (a cluster).
-- ARGV: tenant, then job ids.
-- Returns the ids that were parked; a job that somebody took meanwhile, or that a stock arq worker runs, is left alone.
local moved = {}
for n = 1, #ARGV - 1 do
  local id = ARGV[n + 1]
  local score = redis.call('ZSCORE', KEYS[1], id)
  if score and not (KEYS[3 + n] and redis.call('EXISTS', KEYS[3 + n]) == 1) then
    redis.call('ZREM', KEYS[1], id)
    local added = redis.call('ZADD', KEYS[2], score, id)
    if added == 1 then redis.call('HINCRBY', KEYS[3], ARGV[1], 1) end
    moved[#moved + 1] = id
  end
end
return moved
