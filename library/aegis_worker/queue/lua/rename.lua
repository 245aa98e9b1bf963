#!lua flags=allow-oom
--[[
  Give a claimed job another id, because its own is not text that a worker can handle. If the claim's lease is no longer
  held, the job keeps its id.

  KEYS[1]  The queue, a sorted set of job ids.
  KEYS[2]  The leases, a sorted set of job ids.

  ARGV[1]  The id of the job.
  ARGV[2]  The new id. The script adds `_` to it until it is free.
  ARGV[3]  The token of the claim.
  ARGV[4]  After how many ms the lease lapses.

  Returns the new id.
]]
-- keys: IN_PROGRESS, JOB, RETRY
local queue, leases = KEYS[1], KEYS[2]
local old, new, token, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

while redis.call('ZSCORE', queue, new) or redis.call('EXISTS', IN_PROGRESS .. new, JOB .. new) > 0 do
  new = new .. '_'
end
if redis.call('GET', IN_PROGRESS .. old) == token then
  for _, set in ipairs({ queue, leases }) do
    redis.call('ZINCRBY', set, redis.call('ZSCORE', set, old), new) -- Redis would notify idle workers of a ZADD
    redis.call('ZREM', set, old)
  end
  redis.call('SET', IN_PROGRESS .. new, token, 'PX', lease_ms)
  redis.call('DEL', IN_PROGRESS .. old)
  for _, prefix in ipairs({ JOB, RETRY }) do
    if redis.call('EXISTS', prefix .. old) == 1 then
      redis.call('RENAME', prefix .. old, prefix .. new)
    end
  end
end
return new
