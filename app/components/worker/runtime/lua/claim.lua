#!lua flags=allow-oom
--[[
  Claim jobs that are due: each gets a lease that bears our token, its try is counted, and its payload comes back, in
  one step. Jobs whose lease lapsed come first. It runs also when memory is full: claimed jobs make room.

  KEYS[1]  queue, sorted set: job ids by due time in ms
  KEYS[2]  exists while the queue is paused
  KEYS[3]  sorted set: ids of jobs to abort, by the time of the request in ms
  KEYS[4]  leases, sorted set: job ids by the time in ms at which each lapses

  ARGV[1]  now, ms since the epoch
  ARGV[2]  most jobs to claim
  ARGV[3]  token
  ARGV[4]  ms until a lease lapses
  ARGV[5]  seconds to keep the count of tries
  ARGV[6]  prefix of in-progress keys
  ARGV[7]  prefix of payload keys
  ARGV[8]  prefix of keys that count tries

  Returns { time in ms at which to look again or nil, 1 if jobs are due that cannot be had now, and for each job:
            id, due time, tries begun, time of the request to abort it or nil, payload or nil }
]]
local queue, abort, leases = KEYS[1], KEYS[3], KEYS[4]
local now, wanted, token = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local reply, payloads = { false, 0 }, {}

if redis.call('EXISTS', KEYS[2]) == 1 then
  reply[2] = 1
  return reply
end
local aborts = redis.call('ZCARD', abort) > 0

local function claim(id, due)
  if not redis.call('SET', ARGV[6] .. id, token, 'NX', 'PX', ARGV[4]) then
    return false
  end
  local tries, asked = 1, false
  if not redis.call('SET', ARGV[8] .. id, 1, 'NX', 'EX', ARGV[5]) then
    tries = redis.call('INCR', ARGV[8] .. id)
  end
  if aborts then
    asked = redis.call('ZSCORE', abort, id)
    redis.call('ZREM', abort, id)
  end
  payloads[#payloads + 1] = ARGV[7] .. id
  local at = #reply
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = id, due, tries, asked
  reply[at + 5] = false
  return true
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, wanted)) do
  local due = redis.call('ZSCORE', queue, id)
  if not due or claim(id, due) then
    redis.call('ZREM', leases, id) -- it ended in a stock worker; or it is ours, and entered when first renewed
  else
    redis.call('ZADD', leases, now + 1000, id) -- a stock worker has it, or the mark is about to expire
  end
end

-- Jobs that have just begun elsewhere are still at the head, so the first page may hold none that is free.
local page, offset = wanted - #payloads + 100, 0
while #payloads < wanted do
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', offset, page)
  for i = 1, #due, 2 do
    if #payloads == wanted then
      break
    end
    if not claim(due[i], due[i + 1]) then
      reply[2] = 1
    end
  end
  if #due < 2 * page then
    break
  end
  offset = offset + page
end

for first = 1, #payloads, 1000 do
  local found = redis.call('MGET', unpack(payloads, first, math.min(first + 999, #payloads)))
  for i = 1, #found do
    reply[2 + 5 * (first + i - 1)] = found[i]
  end
end

local due = redis.call('ZRANGEBYSCORE', queue, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local lapses = redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2]
if due and lapses then
  reply[1] = tonumber(due) < tonumber(lapses) and due or lapses
else
  reply[1] = due or lapses or false
end
return reply
