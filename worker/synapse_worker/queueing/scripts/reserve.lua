-- Reserves places for a tenant's jobs, up to its limit; a job that has one keeps it and gets a new deadline.
-- A job that has a place is not among the tenant's queued ones any more.
-- KEYS: the tenant's running, its queued.  ARGV: limit, how long a reservation holds in ms, then job ids, oldest first.
-- Returns the ids that got none.
if #ARGV == 2 then return {} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ids = {}
for i = 3, #ARGV do ids[i - 2] = ARGV[i] end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local free = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1])
local deadline = now + ARGV[2]
local held = redis.call('ZMSCORE', KEYS[1], unpack(ids))
local places, placed, refused = {}, {}, {}
for n, id in ipairs(ids) do
  if not held[n] then
    free = free - 1
  end
  if held[n] or free >= 0 then
    places[#places + 1] = deadline
    places[#places + 1] = id
    placed[#placed + 1] = id
  else
    refused[#refused + 1] = id
  end
end
if #places > 0 then
  redis.call('ZADD', KEYS[1], unpack(places))
  redis.call('ZREM', KEYS[2], unpack(placed))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return refused
