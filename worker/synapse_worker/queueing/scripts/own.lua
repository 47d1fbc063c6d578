-- Takes the Redis for an owner, or prolongs that; leaves another's alone.
-- KEYS: owner.  ARGV: the owner, seconds.  Returns who owns it now.
local owner = redis.call('GET', KEYS[1])
if owner == ARGV[1] then
  -- Not SET: a Redis that is full refuses that.
  redis.call('EXPIRE', KEYS[1], ARGV[2])
elseif not owner then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
return owner or ARGV[1]
