--[[
  Claim jobs that are due: each is marked as running, its try is counted, and its payload comes back, in one step.

  KEYS[1]  queue, sorted set: job ids by due time in ms
  KEYS[2]  exists while the queue is paused
  KEYS[3]  sorted set: ids of jobs to abort

  ARGV[1]  now, ms since the epoch
  ARGV[2]  most jobs to claim
  ARGV[3]  token that marks them as ours
  ARGV[4]  ms after which a mark that nobody removed lapses
  ARGV[5]  seconds to keep the count of tries
  ARGV[6]  prefix of in-progress keys
  ARGV[7]  prefix of payload keys
  ARGV[8]  prefix of keys that count tries

  Returns a list, one entry a job: { id, due time, tries begun, 1 if it is to be aborted, payload or nil }
]]
local queue, abort = KEYS[1], KEYS[3]
local now, wanted, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local claimed = {}

if redis.call('EXISTS', KEYS[2]) == 1 then
  return claimed
end

-- Jobs that run elsewhere stay in the queue until they finish, so the first page may hold none that is free.
local page, offset = wanted + 100, 0
while #claimed < wanted do
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', offset, page)
  for i = 1, #due, 2 do
    local id = due[i]
    if #claimed < wanted and redis.call('SET', ARGV[6] .. id, token, 'NX', 'PX', ARGV[4]) then
      local tries = redis.call('INCR', ARGV[8] .. id)
      redis.call('EXPIRE', ARGV[8] .. id, ARGV[5])
      local aborted = redis.call('ZREM', abort, id)
      claimed[#claimed + 1] = { id, due[i + 1], tries, aborted, redis.call('GET', ARGV[7] .. id) }
    end
  end
  if #due < 2 * page then
    break
  end
  offset = offset + page
end
return claimed
