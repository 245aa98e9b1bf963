#!lua flags=allow-oom
--[[
  Settle a batch of claims: their jobs end, or go back to the queue. Each job is settled as a whole or not at all, and
  only while its lease has the token of the claim, or has lapsed and nobody has taken the job. A batch that is sent
  again, because the reply was lost, changes nothing, however late a copy arrives.

  KEYS[1]  The queue, a sorted set: job ids by the time in ms at which they are due.
  KEYS[2]  The leases, a sorted set: job ids by the time in ms at which the lease lapses.
  KEYS[3]  The jobs to abort, a sorted set of ids.
  KEYS[4]  The dead letters, a sorted set: job ids by the time of death in ms.
  KEYS[5]  The dead letters, a hash: for each its text and its payload, and how many bytes all of them have.

  ARGV[1]  How many dead letters to keep at most.
  ARGV[2]  How many bytes of dead letters to keep at most. The latest letter is kept whatever its size.
  ARGV[3]  For how many seconds the count of tries is kept.
  ARGV[4]  How many jobs there are.
  Then for each job: its id, and a value. The kind of its group says what the value is.
  Then the groups, in the order of the jobs. Jobs that follow each other make one group if all its fields are the same:
    kind     'completed', 'died', 'retried' or 'returned'
    token    of the claim
    tried    '1' if there may be a count of tries
    count    how many jobs the group has
  and the fields of its kind:
    completed (the value is the result, or '')
      keep_ms  for how long the result is kept; '0' for ever
      mark_ms  for how long the in-progress mark stays; '0' to remove it
    died (the value is the result, or '')
      keep_ms  for how long the result is kept; '0' for ever
      letter   the text of the dead letter, JSON
      payload  the payload of the dead letter; '' if it has expired
    retried (the value is the number of ms after which the job is due)
      tries    how many tries have ended; '0' if this one does not count
      raised   what this try has raised, or ''
    returned (the value is the time in ms at which the job is due; this try does not count)

  Returns an empty list if all jobs were settled, or else for each job 1 if it was settled. Where nothing was changed:
    0   the claim no longer holds the lease
    -1  the claim no longer holds the lease, and another worker has the job, which was to end
    -2  the job cannot go back to the queue, as its payload has expired or will have expired by then
]]
-- keys: IN_PROGRESS, JOB, RETRY, RESULT, RAISED
-- include: clock
local queue, leases, abort, dead, letters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local keep_tries_s, jobs = ARGV[3], tonumber(ARGV[4])
local replies, all_settled = {}, true
local requeued, requeued_ids, ended, died, garbage = {}, {}, {}, {}, {}

-- The group that is being settled, one table for all of them: a new one for each would cost more than to read it. Of
-- the last six fields those have a meaning that belong to the kind.
local group = {
  kind = nil, token = nil, tried = nil, count = nil,
  keep_ms = nil, mark_ms = nil, letter = nil, payload = nil, tries = nil, raised = nil,
}

-- Read into `group` the group that begins at the n-th argument. Returns where the next one begins.
local function read_group(n)
  local kind = ARGV[n]
  group.kind, group.token, group.tried, group.count = kind, ARGV[n + 1], ARGV[n + 2], ARGV[n + 3]
  n = n + 4
  if kind == 'completed' then
    group.keep_ms, group.mark_ms = ARGV[n], ARGV[n + 1]
    return n + 2
  elseif kind == 'died' then
    group.keep_ms, group.letter, group.payload = ARGV[n], ARGV[n + 1], ARGV[n + 2]
    return n + 3
  elseif kind == 'retried' then
    group.tries, group.raised = ARGV[n], ARGV[n + 1]
    return n + 2
  end
  return n
end

-- The id of the i-th job is ARGV[3 + 2 * i], and its value is ARGV[4 + 2 * i].
local marks = {}
for i = 1, jobs do
  marks[i] = IN_PROGRESS .. ARGV[3 + 2 * i]
end
local holders = redis.call('MGET', unpack(marks))

-- What can fail, for example because memory is full, comes before what removes.
local i, n, keep_ms, keep_until = 0, 5 + 2 * jobs, '0', nil
while i < jobs do
  n = read_group(n)
  local token, tried, dies, retries = group.token, group.tried == '1', group.kind == 'died', group.kind == 'retried'
  local ends, keeps_mark = dies or group.kind == 'completed', group.kind == 'completed' and group.mark_ms ~= '0'
  if ends and group.keep_ms ~= keep_ms then
    keep_ms = group.keep_ms
    keep_until = keep_ms ~= '0' and string.format('%d', now + keep_ms)
  end
  for _ = 1, group.count do
    i = i + 1
    local id, value, mark, holder = ARGV[3 + 2 * i], ARGV[4 + 2 * i], marks[i], holders[i]
    local reply = 1
    if holder ~= token and (holder or not (redis.call('ZSCORE', leases, id) and redis.call('ZSCORE', queue, id))) then
      -- If the job was to go back, another worker's mark means nothing: a first copy may have put the job back.
      reply = holder and ends and redis.call('ZSCORE', queue, id) and -1 or 0
    elseif ends then
      if value ~= '' and keep_until then
        redis.call('SET', RESULT .. id, value, 'PXAT', keep_until)
      elseif value ~= '' then
        redis.call('SET', RESULT .. id, value)
      end
      garbage[#garbage + 1] = JOB .. id
      if dies then
        died[#died + 1] = { id = id, letter = group.letter, payload = group.payload }
      end
      if keeps_mark then
        redis.call('SET', mark, 1, 'PX', group.mark_ms) -- not our token, since a copy must find that the lease ended
      else
        garbage[#garbage + 1] = mark
      end
      if tried or not holder then -- while the lease was lapsed, others may have tried the job
        garbage[#garbage + 1] = RETRY .. id
        garbage[#garbage + 1] = RAISED .. id
      end
      ended[#ended + 1] = id
    else
      local expires_ms = redis.call('PTTL', JOB .. id) -- -1 where it does not expire, -2 where it has expired
      local wait_ms = retries and tonumber(value) or 0
      if expires_ms == -2 or expires_ms >= 0 and expires_ms < wait_ms then
        reply = -2
      else
        if retries and group.tries ~= '0' then
          redis.call('SET', RETRY .. id, group.tries, 'EX', keep_tries_s)
        end
        if retries and group.raised ~= '' then
          redis.call('SET', RAISED .. id, group.raised, 'EX', keep_tries_s)
        end
        requeued[#requeued + 1], requeued[#requeued + 2] = retries and now + wait_ms or value, id
        requeued_ids[#requeued_ids + 1] = id
        garbage[#garbage + 1] = mark
      end
    end
    replies[i] = reply
    all_settled = all_settled and reply == 1
  end
end
if #died > 0 then
  -- include: letters
  local more_bytes = 0
  for _, job in ipairs(died) do
    more_bytes = more_bytes + #job.payload + #job.letter - letter_bytes(letters, job.id)
    redis.call('HSET', letters, PAYLOAD_FIELD .. job.id, job.payload, LETTER_FIELD .. job.id, job.letter)
    redis.call('ZADD', dead, now, job.id)
  end
  local most_letters, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
  local kept, bytes = redis.call('ZCARD', dead), add_bytes(letters, more_bytes)
  while kept > most_letters or bytes > most_bytes and kept > 1 do
    local oldest = redis.call('ZPOPMIN', dead)[1]
    kept, bytes = kept - 1, add_bytes(letters, -delete_letter(letters, oldest))
  end
end
if #requeued_ids > 0 then
  -- Once for all, as Redis notifies workers of each ZADD. XX: a job that was purged meanwhile stays away.
  redis.call('ZADD', queue, 'XX', unpack(requeued))
  redis.call('ZREM', leases, unpack(requeued_ids))
end
if #ended > 0 then
  redis.call('ZREM', leases, unpack(ended))
  redis.call('ZREM', queue, unpack(ended))
  if redis.call('EXISTS', abort) == 1 then
    redis.call('ZREM', abort, unpack(ended))
  end
end
if #garbage > 0 then
  redis.call('UNLINK', unpack(garbage))
end
return all_settled and {} or replies
