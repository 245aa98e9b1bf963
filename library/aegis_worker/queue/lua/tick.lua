#!lua
--[[
  Enqueue a run of a cron job: once for all replicas, also where their clocks differ.

  KEYS[1]  queue, sorted set: job ids by due time in ms
  KEYS[2]  hash: the last time in ms for which each cron job was enqueued
  KEYS[3]  set: replicas whose start was answered
  KEYS[4]  payload key
  KEYS[5]  result key

  ARGV[1]  name of the cron job
  ARGV[2]  time that it is for, ms
  ARGV[3]  job id
  ARGV[4]  payload
  ARGV[5]  ms to keep the payload
  ARGV[6]  a replica, when it is for its start, or ''
  ARGV[7]  seconds within which the starts of several replicas are one
  ARGV[8]  ms that a run may be ahead by the server's clock: a replica whose own is further ahead has to wait, or no
           other would have its turn

  Returns 1, or 0 where another replica has done it, -1 where it is too early.
]]
local replica = ARGV[6]

if replica ~= '' then
  local others = redis.call('SCARD', KEYS[3]) > 0 and redis.call('SISMEMBER', KEYS[3], replica) == 0
  if not others then -- the first to start, or one that starts again
    redis.call('DEL', KEYS[3])
  end
  redis.call('SADD', KEYS[3], replica)
  if others then
    return 0
  end
  redis.call('EXPIRE', KEYS[3], ARGV[7])
else
  local time = redis.call('TIME')
  if tonumber(ARGV[2]) > time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[8] then
    return -1
  end
  if tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0) >= tonumber(ARGV[2]) then
    return 0
  end
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
end
if redis.call('EXISTS', KEYS[4], KEYS[5]) == 1 then
  return 0
end
redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[5])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
return 1
