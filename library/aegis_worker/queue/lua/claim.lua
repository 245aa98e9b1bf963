#!lua flags=allow-oom
--[[
  Claim jobs that are due. In one step each job gets a lease that has the token of this claim, its score in the queue
  becomes the time by which it has ended for certain, and its payload is read. Jobs whose lease has lapsed come first.
  The script also runs when memory is full, because the end of a job frees memory.

  KEYS[1]  The queue, a sorted set: job ids by the time in ms at which they are due.
  KEYS[2]  A key that exists while the queue is paused.
  KEYS[3]  The jobs to abort, a sorted set: ids by the time in ms of the request.
  KEYS[4]  The leases, a sorted set: job ids by the time in ms at which the lease lapses.
  KEYS[5]  The worker's fence: a claim with a lower number comes too late.
  KEYS[6]  The rate window, a list: the times in ms at which the jobs of the last period were claimed.
  KEYS[7]  The bell, a sorted set: a member wakes a worker that idles. It gets one where due jobs are left.
  KEYS[8]  The time in ms of the last claim or renewal of anybody; see lib/outage.lua.

  ARGV[1]  How many jobs to claim at most.
  ARGV[2]  The token, which no other claim has.
  ARGV[3]  The number of the claim, counted by the worker.
  ARGV[4]  After how many ms a lease lapses that is not renewed.
  ARGV[5]  After how many ms a job has ended for certain.
  ARGV[6]  For how many seconds the count of tries is kept.
  ARGV[7]  How many jobs may run at a time, over all replicas; 0 for any number.
  ARGV[8]  How many jobs may begin in a period, over all replicas; 0 for any number.
  ARGV[9]  That period in ms.
  ARGV[10] How many ms after the last claim or renewal the first lease can lapse.
  ARGV[11] Within how many ms after an outage all workers have renewed their leases.
  ARGV[12] 1 if the claim waited in Redis, so that the worker that sent it may be gone by now. The times of its leases
           end in half a millisecond until they are renewed. If such a lease lapses, it does not count as a try.

  Returns a list:
    1. after how many ms to poll again; nil for never, or where it claimed as many jobs as it was to and no rate limit
       is reached
    2. 1 if jobs may be due that cannot be claimed now
    3. 1 if the rate limit keeps jobs back
    4. how many of the jobs had a lease that lapsed; these are the first ones
    5. the ids of the jobs
    6. the times at which they were due
    7. their payloads, nil for one that has expired
    8. how many tries of each have ended, nil for none; an empty list where all are nil
    9. the times of the requests to abort them, nil for none; an empty list where all are nil
]]
-- keys: IN_PROGRESS, JOB, RETRY
-- include: clock, events, outage
local queue, abort, leases, rate_window, bell, last_active = KEYS[1], KEYS[3], KEYS[4], KEYS[6], KEYS[7], KEYS[8]
local wanted, token, lease_ms = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[4])
local most_running, most_begun, period = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local waited = ARGV[12] == '1'
-- Redis takes long to make text of a number, so it is not left to each command that is given one.
local lapses_at, ends_at = string.format('%d', now + lease_ms), string.format('%d', now + ARGV[5])
local first_lapses_at = waited and lapses_at .. '.5' or lapses_at -- of the leases of jobs that had none
local blocked, limited = 0, 0

local fence, paused, active_at = unpack(redis.call('MGET', KEYS[5], KEYS[2], last_active))
local late = tonumber(fence or 0) > tonumber(ARGV[3])
if late and waited then
  redis.pcall('ZADD', bell, 0, '') -- the bell woke a worker that is gone, so wake another one
end
if late or paused then
  return { false, late and 0 or 1, 0, 0, {}, {}, {}, {}, {} }
end

local renewal_ms = tonumber(ARGV[11])
local wait_ms = wait_after_outage(last_active, active_at, leases, now, lease_ms, tonumber(ARGV[10]), renewal_ms)
if wait_ms > renewal_ms then -- the server's clock went back
  redis.call('SET', last_active, now)
elseif wait_ms > 0 then
  return { wait_ms, 1, 0, 0, {}, {}, {}, {}, {} }
end

if most_begun > 0 then
  local oldest = redis.call('LINDEX', rate_window, 0)
  while oldest and (tonumber(oldest) <= now - period or tonumber(oldest) > now) do -- or the clock went back
    redis.call('LPOP', rate_window)
    oldest = redis.call('LINDEX', rate_window, 0)
  end
  wanted = math.min(wanted, most_begun - redis.call('LLEN', rate_window))
end

local count, ids, due_at, scores = 0, {}, {}, {}
local was_try = {} -- for each job whose lease had lapsed: whether that lease counts as a try

-- Take a job unless somebody else runs it. A score that is no time is replaced first, as nothing can be added to one
-- that is infinite.
local function take(id, due, score, is_no_time)
  local taken = redis.call('SET', IN_PROGRESS .. id, token, 'NX', 'PXAT', lapses_at)
  if taken then
    if is_no_time then
      redis.call('ZREM', queue, id)
      due, score = math.max(due, 0), 0
    end
    count = count + 1
    ids[count], due_at[count], scores[count] = id, due, score
  end
  return taken
end

while count < wanted do
  -- A lease and its mark hold until their last millisecond is over. The jobs taken so far are still at the head.
  local page = redis.call('ZRANGEBYSCORE', leases, '-inf', '(' .. now, 'WITHSCORES', 'LIMIT', count, wanted - count)
  if #page == 0 then
    break
  end
  for i = 1, #page, 2 do
    local id, lapsed_at = page[i], page[i + 1]
    local score = redis.call('ZSCORE', queue, id)
    if not score then
      redis.call('ZREM', leases, id) -- the job ended in a stock worker
    elseif take(id, now, score, tonumber(score) < 0 or tonumber(score) >= 2 ^ 53) then
      was_try[count] = lapsed_at % 1 == 0
    else
      redis.call('ZADD', leases, now + 1000, id) -- a stock worker runs it
    end
  end
end
local lapsed, capped = count, false
if most_running > 0 then
  local free = math.max(0, most_running - redis.call('ZCARD', leases))
  capped = lapsed + free < wanted
  wanted = math.min(wanted, lapsed + free)
end

-- arq rounds its clock to the millisecond, so that a job which was enqueued just now may be due half of one from now.
-- Jobs that stock workers run are at the head of the queue too, so that the first page may hold none that is free.
local page, offset = wanted - count, 0
while count < wanted do
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'WITHSCORES', 'LIMIT', offset, page)
  local is_no_time, before = due[2] and tonumber(due[2]) < 0, count -- the first score is the lowest
  for i = 1, #due, 2 do
    local id, score = due[i], due[i + 1]
    if count == wanted then
      break
    end
    if not take(id, score, score, is_no_time) and redis.pcall('GET', IN_PROGRESS .. id) ~= token then
      blocked = 1
    end
  end
  if #due < 2 * page then
    break
  end
  -- The jobs of a page whose first score is no time have left the queue.
  offset, page = offset + page - (is_no_time and count - before or 0), 2 * page + 20
end

local payloads, tries, aborts = {}, {}, {}
if count > 0 then
  local queue_entries, lease_entries, payload_keys, retry_keys = {}, {}, {}, {}
  for i = 1, count do
    local id = ids[i]
    queue_entries[2 * i - 1] = ends_at
    queue_entries[2 * i] = id
    lease_entries[2 * i - 1] = i > lapsed and first_lapses_at or lapses_at
    lease_entries[2 * i] = id
    payload_keys[i], retry_keys[i] = JOB .. id, RETRY .. id
  end
  if count > MOST_SILENT then
    redis.call('ZADD', queue, unpack(queue_entries))
  else
    for i = 1, count do
      redis.call('ZINCRBY', queue, ends_at - scores[i], ids[i])
    end
  end
  redis.call('ZADD', leases, unpack(lease_entries))
  if most_begun > 0 then
    local times = {}
    for i = 1, count do
      times[i] = now
    end
    redis.call('RPUSH', rate_window, unpack(times))
    redis.call('PEXPIRE', rate_window, period)
  end
  payloads = redis.call('MGET', unpack(payload_keys))
  if lapsed > 0 or redis.call('EXISTS', unpack(retry_keys)) > 0 then -- few jobs have a count of tries
    tries = redis.call('MGET', unpack(retry_keys))
  end
  for i = 1, lapsed do
    if was_try[i] then -- by a worker that is gone
      tries[i] = string.format('%.0f', (tonumber(tries[i] or 0) or 0) + 1)
      redis.call('SET', retry_keys[i], tries[i], 'EX', ARGV[6])
    end
  end
  if redis.call('EXISTS', abort) == 1 then
    -- The requests stay until the jobs are settled, because our reply may be lost.
    aborts = redis.call('ZMSCORE', abort, unpack(ids))
  end
end

local full = count == tonumber(ARGV[1])
local due, lapses, next_poll
if full or capped or most_begun > 0 then
  due = redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'LIMIT', 0, 1)[1]
end
if not full or most_begun > 0 then
  lapses = tonumber(redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2])
end
if not full then
  next_poll = tonumber(redis.call('ZRANGEBYSCORE', queue, '(' .. now + 1, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
  if lapses and (not next_poll or lapses < next_poll) then
    next_poll = lapses + 1
  end
elseif due then
  redis.pcall('ZADD', bell, 0, '') -- if somebody made the key another type, that only delays jobs, and no claim fails
end
if capped and due then
  blocked = 1
end
if most_begun > 0 and (due or lapses and lapses < now) and redis.call('LLEN', rate_window) >= most_begun then
  next_poll = redis.call('LINDEX', rate_window, 0) + period
  limited = 1
end
-- Producers write any score. In the reply, one that is too large for an integer would become negative.
local poll_after_ms = next_poll and math.min(math.max(0, next_poll - now), 2 ^ 53) or false
return { poll_after_ms, blocked, limited, lapsed, ids, due_at, payloads, tries, aborts }
