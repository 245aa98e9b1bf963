#!lua flags=allow-oom
--[[
  End a batch of jobs that we claimed, or give them back: each whole or not at all, and only while its lease bears the
  token of its claim, or has lapsed and nobody took it. To send it again, after a reply that was lost, changes nothing,
  however late a copy arrives.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set
  KEYS[3]  sorted set: ids of jobs to abort
  KEYS[4]  dead letters, sorted set: ids by time of death
  KEYS[5]  dead letters, hash: 'letter:' .. id and 'payload:' .. id, and their 'bytes'

  ARGV[1]  most dead letters to keep
  ARGV[2]  most bytes of them; the latest is kept whatever it has
  ARGV[3]  seconds to keep the count of tries
  ARGV[4]  prefix of in-progress keys
  ARGV[5]  prefix of payload keys
  ARGV[6]  prefix of keys that count the tries that are over
  ARGV[7]  prefix of result keys
  ARGV[8]  prefix of keys that tell what the last try has raised
  ARGV[9]  how many jobs there are, and two for each: id and data
  and six for each run of jobs that end alike, in order: token, 1 if there may be counts of their tries, kind, amount,
  last, how many they are; 'dead' a seventh
  'end'    data: the result ('' to keep none); amount: ms to keep it (0 for ever); last: ms to leave the in-progress
           mark (0 to remove it; a cron job's keeps a late replica from running it again)
  'dead'   the same, but last is what the dead letter says, JSON, and the seventh its payload, which may have expired
  'again'  data: ms until it is due; amount: tries that are over (0: the try does not count); last: what it has raised,
           to be told where no later try tells of itself, or ''
  'back'   data: due time in ms; the try does not count

  Returns for each job 1, or where nothing was changed: 0 if the lease is no longer ours, -1 if the job, which is to
  end, is somebody else's now, -2 if it cannot be given back, since its payload has expired or will have by then; nothing
  where all are 1.
]]
local queue, leases, abort, dead, letters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local in_progress, job, retry, result, raised = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local jobs = tonumber(ARGV[9])
local marks, replies, requeued, back, ended, garbage = {}, {}, {}, {}, {}, {}
local all_done, letters_grew = true, nil

local function expires(id, within_ms)
  local left = redis.call('PTTL', job .. id)
  return left == -2 or left >= 0 and left < within_ms
end

local function size_of_letter(id)
  return redis.call('HSTRLEN', letters, 'payload:' .. id) + redis.call('HSTRLEN', letters, 'letter:' .. id)
end

for i = 1, jobs do
  marks[i] = in_progress .. ARGV[8 + 2 * i]
end
local holders = redis.call('MGET', unpack(marks))

-- What can fail, for want of memory say, comes before what removes.
local group, i = 10 + 2 * jobs, 0
while i < jobs do
  local token, tried, kind, amount, last, alike, payload = unpack(ARGV, group, group + 6)
  local ends = kind == 'end' or kind == 'dead'
  group = group + (kind == 'dead' and 7 or 6)
  local keep_until = amount ~= '0' and string.format('%d', now + amount)
  for _ = 1, alike do
    i = i + 1
    local id, data, mark, holder = ARGV[8 + 2 * i], ARGV[9 + 2 * i], marks[i], holders[i]
    local reply = 1
    if holder ~= token and (holder or not (redis.call('ZSCORE', leases, id) and redis.call('ZSCORE', queue, id))) then
      -- Of one that goes back somebody else's mark says nothing: it may have been claimed since.
      reply = holder and ends and redis.call('ZSCORE', queue, id) and -1 or 0
    elseif not ends and expires(id, kind == 'again' and tonumber(data) or 0) then
      reply = -2
    elseif ends then
      if data ~= '' and keep_until then
        redis.call('SET', result .. id, data, 'PXAT', keep_until)
      elseif data ~= '' then
        redis.call('SET', result .. id, data)
      end
      if kind == 'dead' then
        letters_grew = (letters_grew or 0) + #payload + #last - size_of_letter(id)
        redis.call('HSET', letters, 'payload:' .. id, payload, 'letter:' .. id, last)
        redis.call('ZADD', dead, now, id)
      end
      garbage[#garbage + 1] = job .. id
      if kind == 'end' and last ~= '0' then
        redis.call('SET', mark, 1, 'PX', last) -- no token of ours: the lease is over, also for copies of this
      else
        garbage[#garbage + 1] = mark
      end
      if tried == '1' or not holder then -- others may have tried it since the lease lapsed
        garbage[#garbage + 1] = retry .. id
        garbage[#garbage + 1] = raised .. id
      end
      ended[#ended + 1] = id
    else
      if kind == 'again' then
        if amount ~= '0' then
          redis.call('SET', retry .. id, amount, 'EX', ARGV[3])
        end
        if last ~= '' then
          redis.call('SET', raised .. id, last, 'EX', ARGV[3])
        end
        data = now + data
      end
      requeued[#requeued + 1], requeued[#requeued + 2] = data, id
      back[#back + 1] = id
      garbage[#garbage + 1] = mark
    end
    replies[i] = reply
    all_done = all_done and reply == 1
  end
end

if #back > 0 then
  -- Once: each is an event that workers hear of. XX: a job that was purged meanwhile stays away.
  redis.call('ZADD', queue, 'XX', unpack(requeued))
  redis.call('ZREM', leases, unpack(back))
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
if letters_grew then
  local most, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
  local kept, bytes = redis.call('ZCARD', dead), redis.call('HINCRBY', letters, 'bytes', letters_grew)
  while kept > most or bytes > most_bytes and kept > 1 do
    local oldest = redis.call('ZPOPMIN', dead)[1]
    kept, bytes = kept - 1, redis.call('HINCRBY', letters, 'bytes', -size_of_letter(oldest))
    redis.call('HDEL', letters, 'payload:' .. oldest, 'letter:' .. oldest)
  end
end
return all_done and {} or replies
