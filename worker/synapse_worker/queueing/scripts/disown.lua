-- Gives the Redis up, unless it is another's.
-- KEYS: owner.  ARGV: the owner.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
