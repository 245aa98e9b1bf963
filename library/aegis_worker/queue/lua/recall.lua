#!lua flags=allow-oom
--[[
  Give back the jobs that a worker has claimed without knowing it, because the reply was lost. Their tries do not count.
  A claim of the worker that is still on its way to Redis is refused from now on.

  KEYS[1]  The queue, a sorted set: job ids by the time in ms at which they are due.
  KEYS[2]  The leases, a sorted set: job ids by the time in ms at which the lease lapses.
  KEYS[3]  The worker's fence: the lowest number that a claim of the worker may have.

  ARGV[1]  The number of the worker's next claim.
  ARGV[2]  For how many seconds the fence is kept.
  ARGV[3]  What the tokens of the worker's claims begin with.
  Then for each job that the worker knows of: its id, and the token of its lease.

  Returns how many jobs were given back.
]]
-- keys: IN_PROGRESS
-- include: clock
local queue, leases, fence = KEYS[1], KEYS[2], KEYS[3]
local next_claim, keep_s, ours = ARGV[1], ARGV[2], ARGV[3]
local known, recalled = {}, 0

redis.call('SET', fence, next_claim, 'EX', keep_s)
for n = 4, #ARGV, 2 do
  known[ARGV[n]] = ARGV[n + 1]
end
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local mark = IN_PROGRESS .. id
  local holder = redis.call('GET', mark) or ''
  if holder ~= known[id] and string.sub(holder, 1, #ours) == ours then
    redis.call('UNLINK', mark)
    redis.call('ZREM', leases, id)
    redis.call('ZADD', queue, 'XX', now, id)
    recalled = recalled + 1
  end
end
return recalled
