#!lua flags=allow-oom
--[[
  Write a replica's health record, and enter the replica in its queue's registry. It runs also when memory is full:
  without it a worker that starts would claim nothing, and claimed jobs make room.

  KEYS[1]  the record
  KEYS[2]  registry, sorted set: replicas by the time in ms at which each was last seen

  ARGV[1]  replica
  ARGV[2]  its state
  ARGV[3]  ms that the record lives
  ARGV[4]  ms after which a replica that is not seen leaves the registry
]]
local time = redis.call('TIME') -- one clock, or the replica whose own is ahead would have the others leave
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[4])
