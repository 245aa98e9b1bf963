#!lua flags=allow-oom
--[[
  Claim jobs that are due: each gets a lease that bears our token, stands aside in the queue until it has ended for
  certain, and its payload comes back, in one step. Jobs whose lease lapsed come first. The time is the server's, so
  that replicas with clocks of their own agree. It runs also when memory is full: claimed jobs make room.

  KEYS[1]  queue, sorted set: job ids by due time in ms
  KEYS[2]  exists while the queue is paused
  KEYS[3]  sorted set: ids of jobs to abort, by the time of the request in ms
  KEYS[4]  leases, sorted set: job ids by the time in ms at which each lapses
  KEYS[5]  the worker's fence: claims with a lower number come too late
  KEYS[6]  list: the times in ms at which the jobs of the last period were claimed
  KEYS[7]  bell, sorted set: another worker that idles waits for a member; it gets one where due jobs are left
  KEYS[8]  when somebody last claimed or renewed, ms; one that is still to come: until when nobody may claim

  ARGV[1]  most jobs to claim
  ARGV[2]  token, of this claim alone
  ARGV[3]  its number
  ARGV[4]  ms until a lease lapses
  ARGV[5]  ms in which a job has ended for certain
  ARGV[6]  seconds to keep the count of tries
  ARGV[7]  most jobs that run at a time, over all replicas; 0 for no limit
  ARGV[8]  most jobs to begin in a period, over all replicas; 0 for no limit
  ARGV[9]  that period, ms
  ARGV[10] prefix of in-progress keys
  ARGV[11] prefix of payload keys
  ARGV[12] prefix of keys that count the tries that are over
  ARGV[13] ms after the last claim or renewal at which leases lapse at the soonest
  ARGV[14] ms in which all leases are renewed after an outage
  ARGV[15] 1 for a claim that waited in Redis: whoever sent it may be gone. Its leases end by half a millisecond, until
           they are renewed; one that lapses so was no try, the first time

  Returns { ms after which to look again, nil for never, or where it got as many jobs as it wanted and the rate limit is
            not reached; 1 if jobs may be due that cannot be had now; 1 if the rate limit keeps some back; how many of
            the jobs, the first ones, had a lease that lapsed; ids; due times; payloads, nil for none; counts of tries
            that are over, nil for none, or nothing where there are none at all; times of the requests to abort them, in
            the same way }
]]
local FEW = 8 -- jobs: of a claim of no more, those that listen are not told; of a larger one it does no harm
local queue, abort, leases, begun = KEYS[1], KEYS[3], KEYS[4], KEYS[6]
local wanted, token = tonumber(ARGV[1]), ARGV[2]
local most_running, most_begun, period = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local in_progress, job, retry = ARGV[10], ARGV[11], ARGV[12]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- As text, which Redis makes of a number with much ado, each time that a command is given one.
local lapses_at, ends_at = string.format('%d', now + ARGV[4]), string.format('%d', now + ARGV[5])
local lapse_after, renewed_within, waited = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15] == '1'
local leased_until = waited and lapses_at .. '.5' or lapses_at -- for jobs that had no lease before
local blocked, limited = 0, 0

local fence, paused, seen = unpack(redis.call('MGET', KEYS[5], KEYS[2], KEYS[8]))
local late = tonumber(fence or 0) > tonumber(ARGV[3])
if late and waited then
  redis.pcall('ZADD', KEYS[7], 0, '') -- it rang for one that is gone
end
if late or paused then
  return { false, late and 0 or 1, 0, 0, {}, {}, {}, {}, {} }
end

-- Where nobody claimed or renewed until leases lapsed, Redis stood still or was away: nobody claims until those who
-- hold them have renewed.
local waits_ms = 0
local quiet = tonumber(seen) and now - seen -- ms; below 0 while nobody may claim, or where the clock went back
if quiet and quiet > lapse_after and redis.call('ZCOUNT', leases, '-inf', '(' .. now) > 0 then
  waits_ms = renewed_within
  redis.call('SET', KEYS[8], now + waits_ms)
elseif quiet and quiet < 0 and quiet >= -renewed_within then
  waits_ms = -quiet
elseif not quiet or math.abs(quiet) > ARGV[4] / 12 then
  redis.call('SET', KEYS[8], now)
end
if waits_ms > 0 then
  return { waits_ms, 1, 0, 0, {}, {}, {}, {}, {} }
end

if most_begun > 0 then
  local oldest = redis.call('LINDEX', begun, 0)
  while oldest and (tonumber(oldest) <= now - period or tonumber(oldest) > now) do -- or the clock went back
    redis.call('LPOP', begun)
    oldest = redis.call('LINDEX', begun, 0)
  end
  wanted = math.min(wanted, most_begun - redis.call('LLEN', begun))
end

local count, ids, due_at, scores = 0, {}, {}, {}
local over = {} -- for each that had a lease which lapsed: whether that was a try
local function take(id, due, score, odd)
  local taken = redis.call('SET', in_progress .. id, token, 'NX', 'PXAT', lapses_at)
  if taken then
    if odd then -- the score may be no time, and nothing can be added to what is infinite
      redis.call('ZREM', queue, id)
      due, score = math.max(due, 0), 0
    end
    count = count + 1
    ids[count], due_at[count], scores[count] = id, due, score
  end
  return taken
end

while count < wanted do
  -- A lease holds during its last millisecond, as its mark does. Those that we took are still at the head.
  local page = redis.call('ZRANGEBYSCORE', leases, '-inf', '(' .. now, 'WITHSCORES', 'LIMIT', count, wanted - count)
  if #page == 0 then
    break
  end
  for i = 1, #page, 2 do
    local id, lapsed_at = page[i], page[i + 1]
    local score = redis.call('ZSCORE', queue, id)
    if not score then
      redis.call('ZREM', leases, id) -- it ended in a stock worker
    elseif take(id, now, score, tonumber(score) < 0 or tonumber(score) >= 2 ^ 53) then
      over[count] = lapsed_at % 1 == 0
    else
      redis.call('ZADD', leases, now + 1000, id) -- a stock worker has it
    end
  end
end
local lapsed, capped = count, false
if most_running > 0 then
  local free = math.max(0, most_running - redis.call('ZCARD', leases))
  capped = lapsed + free < wanted
  wanted = math.min(wanted, lapsed + free)
end

-- arq rounds its clock to the millisecond: a job enqueued just now may be due half of one from now. Those that a stock
-- worker runs are at the head too, so that the first page may hold none that is free.
local page, offset = wanted - count, 0
while count < wanted do
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'WITHSCORES', 'LIMIT', offset, page)
  local odd, before = due[2] and tonumber(due[2]) < 0, count -- the first is the least
  for i = 1, #due, 2 do
    local id, score = due[i], due[i + 1]
    if count == wanted then
      break
    end
    if not take(id, score, score, odd) and redis.pcall('GET', in_progress .. id) ~= token then
      blocked = 1
    end
  end
  if #due < 2 * page then
    break
  end
  offset, page = offset + page - (odd and count - before or 0), 2 * page + 20 -- odd ones have left the queue
end

local payloads, tries, aborts = {}, {}, {}
if count > 0 then
  local aside, entries, counts = {}, {}, {}
  for i = 1, count do
    local id = ids[i]
    aside[2 * i - 1] = ends_at
    aside[2 * i] = id
    entries[2 * i - 1] = i > lapsed and leased_until or lapses_at
    entries[2 * i] = id
    payloads[i], counts[i] = job .. id, retry .. id
  end
  if count > FEW then
    redis.call('ZADD', queue, unpack(aside))
  else
    for i = 1, count do -- which is another event than that of a new job
      redis.call('ZINCRBY', queue, ends_at - scores[i], ids[i])
    end
  end
  redis.call('ZADD', leases, unpack(entries))
  if most_begun > 0 then
    local times = {}
    for i = 1, count do
      times[i] = now
    end
    redis.call('RPUSH', begun, unpack(times))
    redis.call('PEXPIRE', begun, period)
  end
  payloads = redis.call('MGET', unpack(payloads))
  if lapsed > 0 or redis.call('EXISTS', unpack(counts)) > 0 then -- hardly ever
    tries = redis.call('MGET', unpack(counts))
  end
  for i = 1, lapsed do
    if over[i] then -- the try of a worker that is gone
      tries[i] = string.format('%.0f', (tonumber(tries[i] or 0) or 0) + 1)
      redis.call('SET', counts[i], tries[i], 'EX', ARGV[6])
    end
  end
  if redis.call('EXISTS', abort) == 1 then
    -- They stay until the jobs' ends are stored: our reply may be lost.
    aborts = redis.call('ZMSCORE', abort, unpack(ids))
  end
end

local full = count == tonumber(ARGV[1])
local due, lapses, next_look
if full or capped or most_begun > 0 then
  due = redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'LIMIT', 0, 1)[1]
end
if not full or most_begun > 0 then
  lapses = tonumber(redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2])
end
if not full then
  next_look = tonumber(redis.call('ZRANGEBYSCORE', queue, '(' .. now + 1, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
  if lapses and (not next_look or lapses < next_look) then
    next_look = lapses + 1
  end
elseif due then
  redis.pcall('ZADD', KEYS[7], 0, '') -- a key that is something else costs time, and no claim
end
if capped and due then
  blocked = 1
end
if most_begun > 0 and (due or lapses and lapses < now) and redis.call('LLEN', begun) >= most_begun then
  next_look = redis.call('LINDEX', begun, 0) + period
  limited = 1
end
-- Producers write any score; of one beyond what an integer holds, the reply would hold a negative one.
local look_after = next_look and math.min(math.max(0, next_look - now), 2 ^ 53) or false
return { look_after, blocked, limited, lapsed, ids, due_at, payloads, tries, aborts }
