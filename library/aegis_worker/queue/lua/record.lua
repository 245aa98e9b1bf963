#!lua flags=allow-oom
--[[
  Write the health record of a replica, and enter the replica in the registry of its queue. The script also runs when
  memory is full: without its record a worker that starts would claim nothing, and the end of a job frees memory.

  KEYS[1]  The health record.
  KEYS[2]  The registry, a sorted set: replicas by the time in ms at which each was last seen.

  ARGV[1]  The name of the replica.
  ARGV[2]  Its state, JSON.
  ARGV[3]  For how many ms the record is kept.
  ARGV[4]  After how many ms a replica that was not seen leaves the registry.

  Returns nothing.
]]
-- include: clock
local record, registry = KEYS[1], KEYS[2]
local replica, state, keep_ms, forget_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

redis.call('SET', record, state, 'PX', keep_ms)
redis.call('ZADD', registry, now, replica)
redis.call('ZREMRANGEBYSCORE', registry, '-inf', now - forget_ms)
