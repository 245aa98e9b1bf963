#!lua
--[[
  Enqueue a batch of jobs, as arq does one: a job whose id is in use, or whose unique key a job holds that is not over
  yet, is left out. One that runs is not over, though its payload may have expired.

  KEYS[1]  queue, sorted set: job ids by due time in ms

  ARGV[1]  prefix of payload keys
  ARGV[2]  prefix of result keys
  ARGV[3]  prefix of unique keys
  ARGV[4]  prefix of in-progress keys
  ARGV[5]  ms to keep a unique key for longer than the payload: what a job may run past that
  ARGV[6]  bell, sorted set: one worker that idles waits for a member. It is no key of the script, which a user who has
           no right to it could not run then
  and five for each job: ARGV[n] its id, ARGV[n + 1] payload, ARGV[n + 2] due time in ms, ARGV[n + 3] ms to keep the
  payload, ARGV[n + 4] unique key, '' for none

  Returns for each job 1, or 0 where it was left out.
]]
local FEW = 8 -- jobs: of so many, those that listen are not told, as the bell is enough
local job, result, unique, in_progress, longer, bell = unpack(ARGV, 1, 6)
local enqueued, entries = {}, {}

for n = 7, #ARGV, 5 do
  local id, payload, due, keep, key = unpack(ARGV, n, n + 4)
  local free = redis.call('EXISTS', job .. id, result .. id, in_progress .. id) == 0
  if free and key ~= '' then
    local holder = redis.call('GET', unique .. key)
    free = not holder or redis.call('EXISTS', job .. holder, in_progress .. holder) == 0
    if free then
      redis.call('SET', unique .. key, id, 'PX', keep + longer)
    end
  end
  if free then
    redis.call('SET', job .. id, payload, 'PX', keep)
    entries[#entries + 1], entries[#entries + 2] = due, id
  end
  enqueued[#enqueued + 1] = free and 1 or 0
end
if #entries > 0 then
  local rung = type(redis.pcall('ZADD', bell, 0, '')) == 'number'
  if rung and #entries <= 2 * FEW then
    for n = 1, #entries, 2 do
      local due, id = entries[n], entries[n + 1]
      if not redis.call('ZADD', KEYS[1], 'NX', 'INCR', due, id) then -- which is another event than that of a new job
        redis.call('ZADD', KEYS[1], due, id)
      end
    end
  else
    redis.call('ZADD', KEYS[1], unpack(entries)) -- once: each is an event that workers hear of
  end
end
return enqueued
