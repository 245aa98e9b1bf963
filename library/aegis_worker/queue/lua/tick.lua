#!lua
--[[
  Enqueue a run of a cron job: once for all replicas, also where their clocks differ.

  KEYS[1]  The queue, a sorted set: job ids by the time in ms at which they are due.
  KEYS[2]  The ticks, a hash: for each cron job the last time in ms for which it was enqueued.
  KEYS[3]  The starts, a set of replicas: those whose start has been answered by a run at startup.
  KEYS[4]  The key of the payload.
  KEYS[5]  The key of the result.

  ARGV[1]  The name of the cron job.
  ARGV[2]  The time in ms for which the run is.
  ARGV[3]  The id of the job.
  ARGV[4]  The payload.
  ARGV[5]  For how many ms the payload is kept.
  ARGV[6]  The replica, if the run is for its start, or ''.
  ARGV[7]  Within how many seconds the starts of several replicas count as one.
  ARGV[8]  How many ms a run may be ahead of the server's clock. A replica whose own clock is further ahead has to wait,
           or no other replica would ever have a turn.

  Returns 1, or 0 where another replica has enqueued the run, or -1 where it is too early.
]]
-- include: clock
local queue, ticks, starts, payload_key, result_key = unpack(KEYS)
local name, at, id, payload, keep_ms, replica, one_start_s, ahead_ms = unpack(ARGV)

if replica ~= '' then
  local others = redis.call('SCARD', starts) > 0 and redis.call('SISMEMBER', starts, replica) == 0
  if not others then -- this replica is the first to start, or it starts again
    redis.call('DEL', starts)
  end
  redis.call('SADD', starts, replica)
  if others then
    return 0
  end
  redis.call('EXPIRE', starts, one_start_s)
else
  if tonumber(at) > now + ahead_ms then
    return -1
  end
  if tonumber(redis.call('HGET', ticks, name) or 0) >= tonumber(at) then
    return 0
  end
  redis.call('HSET', ticks, name, at)
end
if redis.call('EXISTS', payload_key, result_key) == 1 then
  return 0
end
redis.call('SET', payload_key, payload, 'PX', keep_ms)
redis.call('ZADD', queue, at, id)
return 1
