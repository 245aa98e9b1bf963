#!lua flags=allow-oom
--[[
  Give back what we claimed and never heard of, since the reply was lost; no try is counted. A claim that is still on
  its way comes too late from now on.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set
  KEYS[3]  our fence

  ARGV[1]  number that our next claim has
  ARGV[2]  seconds to keep the fence
  ARGV[3]  what our tokens begin with
  ARGV[4]  prefix of in-progress keys
  and for each job we know of: ARGV[n] its id, ARGV[n + 1] the token of its lease

  Returns how many it gave back.
]]
local queue, leases = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known, ours, recalled = {}, ARGV[3], 0

redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[2])
for n = 5, #ARGV, 2 do
  known[ARGV[n]] = ARGV[n + 1]
end
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  local mark = ARGV[4] .. id
  local holder = redis.call('GET', mark) or ''
  if holder ~= known[id] and string.sub(holder, 1, #ours) == ours then
    redis.call('UNLINK', mark)
    redis.call('ZREM', leases, id)
    redis.call('ZADD', queue, 'XX', now, id)
    recalled = recalled + 1
  end
end
return recalled
