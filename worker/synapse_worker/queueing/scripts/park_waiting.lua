-- Parks jobs straight from their queue, where nobody has leased them.
-- KEYS: Q, the tenant's parked jobs, parked, then arq's in-progress key of each job.  ARGV: tenant, then job ids.
-- Returns how many were parked; a job that somebody took meanwhile, or that a stock arq worker runs, is left alone.
local moved = 0
for i = 4, #KEYS do
  local id = ARGV[i - 2]
  local score = redis.call('ZSCORE', KEYS[1], id)
  if score and redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('ZREM', KEYS[1], id)
    local added = redis.call('ZADD', KEYS[2], score, id)
    if added == 1 then redis.call('HINCRBY', KEYS[3], ARGV[1], 1) end
    moved = moved + 1
  end
end
return moved
