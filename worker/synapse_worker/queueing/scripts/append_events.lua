-- Appends events to a run's stream unless a later claim has written there.
-- KEYS: stream, its claim.  ARGV: claim, seconds to live, most entries, then events as JSON.
-- Returns 1, or 0 when the writer is out of date and nothing was written.
local newest = tonumber(redis.call('GET', KEYS[2]) or '0')
local mine = tonumber(ARGV[1])
if newest > mine then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for i = 4, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'data', ARGV[i])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
