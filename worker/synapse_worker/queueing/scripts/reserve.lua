-- Takes back places of a tenant's jobs, then reserves others, up to its limit; a job that has one keeps it and gets a new
-- deadline, and as many as come back may be taken up again, whatever the limit is by now. A job that has a place is not
-- among the tenant's queued ones any more.
-- KEYS: the tenant's running, its queued.
-- ARGV: limit, how long a reservation holds in ms, how many places come back, their job ids, then those of the jobs that
-- want one, oldest first.
-- Returns how many places are left, then the ids that got none.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local given, freed = tonumber(ARGV[3]), 0
if given > 0 then freed = redis.call('ZREM', KEYS[1], unpack(ARGV, 4, 3 + given)) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local room = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1])
local free = math.max(room, freed)
local ids = {unpack(ARGV, 4 + given)}
if #ids == 0 then return {math.max(room, 0)} end
local deadline = now + ARGV[2]
local held = redis.call('ZMSCORE', KEYS[1], unpack(ids))
local places, placed, refused = {}, {}, {}
for n, id in ipairs(ids) do
  if not held[n] then
    free = free - 1
    room = room - 1
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
return {math.max(room, 0), unpack(refused)}
