-- Takes candidates that `peek` saw, in the order given, until enough are taken.
-- KEYS: Q, again or suspects, leases, claims, then arq's in-progress key of each candidate, or none of them (a cluster).
-- ARGV: how many to take, lease in ms, worker id, the leases' token, for each candidate 2 (it waits in the second key)
-- or 1 (in Q) in one text, then the candidates' ids.
-- Returns [id, original score, ...] of what was taken. A candidate that a stock arq worker runs stays where it is.
if #ARGV == 5 then return {} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local want, lease, worker, token, places = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local ids, foreign = {}, {}
for at = 6, #ARGV do ids[at - 5] = ARGV[at] end
for i = 5, #KEYS do foreign[i - 4] = KEYS[i] end
-- One call for all candidates each: calls are what a script's time goes into.
local scores = {redis.call('ZMSCORE', KEYS[1], unpack(ids)), redis.call('ZMSCORE', KEYS[2], unpack(ids))}
local claims = redis.call('HMGET', KEYS[4], unpack(ids))
if #foreign > 0 then foreign = redis.call('MGET', unpack(foreign)) end
local gone, seen, leases, owners, taken = {{}, {}}, {}, {}, {}, {}
for n, id in ipairs(ids) do
  if #taken >= want * 2 then break end
  local source = string.byte(places, n) - 48
  local score = scores[source][n]
  if score and (claims[n] or source == 2 or not foreign[n]) then
    table.insert(gone[source], id)
    if not claims[n] and not seen[id] then -- else the same job was enqueued twice: it is leased already
      seen[id] = true
      table.insert(leases, now + lease)
      table.insert(leases, id)
      table.insert(owners, id)
      table.insert(owners, token .. '|' .. score .. '|' .. worker)
      -- A stock worker watches this key between its look and its own claim, so it can never take the same job.
      if KEYS[4 + n] then redis.call('SET', KEYS[4 + n], worker, 'PX', lease) end
      table.insert(taken, id)
      table.insert(taken, score)
    end
  end
end
for source = 1, 2 do
  if #gone[source] > 0 then redis.call('ZREM', KEYS[source], unpack(gone[source])) end
end
if #taken > 0 then
  redis.call('ZADD', KEYS[3], unpack(leases))
  redis.call('HSET', KEYS[4], unpack(owners))
end
return taken
