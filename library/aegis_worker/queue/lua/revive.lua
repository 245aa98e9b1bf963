--[[
  Put the jobs of dead letters back into their queue. They are due now, and have all their tries again.

  KEYS[1]  The queue, a sorted set: job ids by the time in ms at which they are due.
  KEYS[2]  The dead letters, a sorted set: job ids by the time of death in ms.
  KEYS[3]  The dead letters, a hash: for each its text and its payload, and how many bytes all of them have.
  KEYS[4]  The jobs to abort, a sorted set of ids. A request that came after the death is not for the revived job.

  ARGV[1]  The time at which the jobs are due, in ms since the epoch.
  ARGV[2]  For how many ms the payloads are kept.
  Then for each letter: the id of its job.

  Returns the ids of the jobs that are in the queue now. It leaves out a letter whose payload has expired, and one whose
  id is in use again.
]]
-- keys: IN_PROGRESS, JOB, RETRY, RESULT, RAISED
-- include: letters
local queue, dead, letters, abort = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local due, keep_ms = ARGV[1], ARGV[2]
local revived, bytes = {}, 0

for n = 3, #ARGV do
  local id = ARGV[n]
  local payload = redis.call('HGET', letters, PAYLOAD_FIELD .. id)
  if payload and payload ~= '' and redis.call('EXISTS', JOB .. id, IN_PROGRESS .. id) == 0 then
    redis.call('SET', JOB .. id, payload, 'PX', keep_ms)
    redis.call('DEL', RETRY .. id, RESULT .. id, RAISED .. id)
    bytes = bytes + delete_letter(letters, id)
    redis.call('ZREM', dead, id)
    redis.call('ZREM', abort, id)
    redis.call('ZADD', queue, due, id)
    revived[#revived + 1] = id
  end
end
if bytes > 0 then
  add_bytes(letters, -bytes)
end
return revived
