--[[
  Put dead letters back into their queue, as jobs that are due now and have all their tries again.

  KEYS[1]  queue, sorted set
  KEYS[2]  dead letters, sorted set: ids by time of death
  KEYS[3]  dead letters, hash: 'letter:' .. id and 'payload:' .. id, and their 'bytes'
  KEYS[4]  sorted set: ids of jobs to abort; a request that came after the death is not for the job that is revived

  ARGV[1]  now, ms since the epoch
  ARGV[2]  ms to keep the payload
  ARGV[3]  prefix of payload keys
  ARGV[4]  prefix of keys that count tries
  ARGV[5]  prefix of result keys
  ARGV[6]  prefix of in-progress keys
  ARGV[7]  prefix of keys that tell what the last try has raised
  and the ids

  Returns the ids that are queued now; left out are those whose payload is gone, or whose id is in use again.
]]
local queue, dead, letters, abort = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local revived, bytes = {}, 0

for n = 8, #ARGV do
  local id = ARGV[n]
  local payload = redis.call('HGET', letters, 'payload:' .. id)
  if payload and payload ~= '' and redis.call('EXISTS', ARGV[3] .. id, ARGV[6] .. id) == 0 then
    redis.call('SET', ARGV[3] .. id, payload, 'PX', ARGV[2])
    redis.call('DEL', ARGV[4] .. id, ARGV[5] .. id, ARGV[7] .. id)
    bytes = bytes + #payload + redis.call('HSTRLEN', letters, 'letter:' .. id)
    redis.call('HDEL', letters, 'payload:' .. id, 'letter:' .. id)
    redis.call('ZREM', dead, id)
    redis.call('ZREM', abort, id)
    redis.call('ZADD', queue, ARGV[1], id)
    revived[#revived + 1] = id
  end
end
if bytes > 0 and redis.call('HINCRBY', letters, 'bytes', -bytes) <= 0 then
  redis.call('HDEL', letters, 'bytes')
end
return revived
