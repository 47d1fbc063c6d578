-- Says what became of a job that was about to be enqueued.
-- KEYS: admission, pending.  ARGV: job id, 1 = it is in a queue now, 0 = it is in none.
if redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then
  if redis.call('HEXISTS', KEYS[1], 'base') == 1 then redis.call('HINCRBY', KEYS[1], 'base', ARGV[2]) end
  redis.call('HINCRBY', KEYS[1], 'version', 1)
end
