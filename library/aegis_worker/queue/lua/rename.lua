#!lua flags=allow-oom
--[[
  Give a job that we claimed another id, since its own is no text that a worker can handle; a lapsed claim's is left.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set

  ARGV[1]  id
  ARGV[2]  the new one; `_` are added to it until it is free
  ARGV[3]  token of the claim
  ARGV[4]  ms until its lease lapses
  ARGV[5]  prefix of in-progress keys
  ARGV[6]  prefix of payload keys
  ARGV[7]  prefix of keys that count the tries that are over

  Returns the new id.
]]
local old, new = ARGV[1], ARGV[2]
while redis.call('ZSCORE', KEYS[1], new) or redis.call('EXISTS', ARGV[5] .. new, ARGV[6] .. new) > 0 do
  new = new .. '_'
end
if redis.call('GET', ARGV[5] .. old) == ARGV[3] then
  for _, set in ipairs(KEYS) do
    redis.call('ZINCRBY', set, redis.call('ZSCORE', set, old), new) -- not ZADD, of which idle replicas would be told
    redis.call('ZREM', set, old)
  end
  redis.call('SET', ARGV[5] .. new, ARGV[3], 'PX', ARGV[4])
  redis.call('DEL', ARGV[5] .. old)
  for n = 6, 7 do
    if redis.call('EXISTS', ARGV[n] .. old) == 1 then
      redis.call('RENAME', ARGV[n] .. old, ARGV[n] .. new)
    end
  end
end
return new
