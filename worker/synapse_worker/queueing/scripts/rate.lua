-- Counts a request of a tenant, unless as many as allowed have come within the last second.
-- KEYS: the tenant's rate (hash: number of a slice of time -> requests in it).  ARGV: requests allowed, ms of a slice,
-- slices that make at least a second.
-- Returns {1, requests still allowed now, 0}, or {0, 0, ms until one is allowed again}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local limit, width, slices = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local slice = math.floor(now / width)
local used, oldest, gone = 0, slice, {}
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  local at = tonumber(counts[i])
  if at <= slice - slices then
    gone[#gone + 1] = counts[i]
  else
    used = used + counts[i + 1]
    oldest = math.min(oldest, at)
  end
end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
if used >= limit then return {0, 0, (oldest + slices) * width - now} end
redis.call('HINCRBY', KEYS[1], string.format('%.0f', slice), 1)
redis.call('PEXPIRE', KEYS[1], width * slices * 2)
return {1, limit - used - 1, 0}
