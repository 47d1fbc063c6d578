-- Takes candidates that `peek` saw, in the order given, until enough are taken.
-- KEYS: Q, again or suspects, leases, claims, then of all candidates arq's in-progress keys, their payloads' keys and
-- their cancel keys, or none of these (a cluster: the caller reads the latter two).
-- ARGV: how many to take, lease in ms, worker id, the leases' token, for each candidate 2 (it waits in the second key)
-- or 1 (in Q) in one text, then the candidates' ids.
-- Returns [id, original score, payload, cancel key's value, ...] of what was taken, the last two nil where there is none.
-- A candidate that a stock arq worker runs stays where it is.
if #ARGV == 5 then return {} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local want, lease, worker, token, places = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local ids, foreign = {}, {}
for at = 6, #ARGV do ids[at - 5] = ARGV[at] end
local reads = #KEYS > 4
if reads then
  for n = 1, #ids do foreign[n] = KEYS[4 + n] end
end
-- One call for all candidates each: calls are what a script's time goes into.
local scores = {redis.call('ZMSCORE', KEYS[1], unpack(ids)), redis.call('ZMSCORE', KEYS[2], unpack(ids))}
local claims = redis.call('HMGET', KEYS[4], unpack(ids))
if reads then foreign = redis.call('MGET', unpack(foreign)) end
local gone, seen, leases, owners, taken, names = {{}, {}}, {}, {}, {}, {}, {}
for n, id in ipairs(ids) do
  if #taken >= want * 4 then break end
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
      if reads then
        redis.call('SET', KEYS[4 + n], worker, 'PX', lease)
        table.insert(names, KEYS[4 + #ids + n])
        table.insert(names, KEYS[4 + 2 * #ids + n])
      end
      local at = #taken
      taken[at + 1], taken[at + 2], taken[at + 3], taken[at + 4] = id, score, false, false
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
if #names > 0 then
  local found = redis.call('MGET', unpack(names))
  for n = 1, #names / 2 do
    taken[4 * n - 1], taken[4 * n] = found[2 * n - 1], found[2 * n]
  end
end
return taken
