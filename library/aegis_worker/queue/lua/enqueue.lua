#!lua
--[[
  Enqueue a batch of jobs, each as arq does it. A job is left out if its id is in use, or if another job has its
  unique key and has not ended. A job that runs has not ended, though its payload may have expired.

  KEYS[1]  The queue, a sorted set: job ids by the time in ms at which they are due.

  ARGV[1]  The bell, a sorted set: a member wakes a worker that idles. It is not among KEYS, so that a user who has
           no right to write to it can run the script all the same.
  ARGV[2]  For how many ms a unique key is kept longer than the payload, as a job may run on after that has expired.
  Then for each job: its id, its payload, the time in ms at which it is due, for how many ms its payload is kept, and
  the key that holds its unique key, or ''.

  Returns for each job 1, or 0 if it was left out.
]]
-- keys: IN_PROGRESS, JOB, RESULT
-- include: events
local queue, bell, longer_ms = KEYS[1], ARGV[1], ARGV[2]
local enqueued, entries = {}, {}

for n = 3, #ARGV, 5 do
  local id, payload, due, keep_ms, unique = unpack(ARGV, n, n + 4)
  local free = redis.call('EXISTS', JOB .. id, RESULT .. id, IN_PROGRESS .. id) == 0
  if free and unique ~= '' then
    local holder = redis.call('GET', unique)
    free = not holder or redis.call('EXISTS', JOB .. holder, IN_PROGRESS .. holder) == 0
    if free then
      redis.call('SET', unique, id, 'PX', keep_ms + longer_ms)
    end
  end
  if free then
    redis.call('SET', JOB .. id, payload, 'PX', keep_ms)
    entries[#entries + 1], entries[#entries + 2] = due, id
  end
  enqueued[#enqueued + 1] = free and 1 or 0
end
if #entries > 0 then
  local bell_rings = type(redis.pcall('ZADD', bell, 0, '')) == 'number'
  if bell_rings and #entries <= 2 * MOST_SILENT then -- the bell wakes enough workers
    for n = 1, #entries, 2 do
      local due, id = entries[n], entries[n + 1]
      if not redis.call('ZADD', queue, 'NX', 'INCR', due, id) then
        redis.call('ZADD', queue, due, id)
      end
    end
  else
    redis.call('ZADD', queue, unpack(entries))
  end
end
return enqueued
