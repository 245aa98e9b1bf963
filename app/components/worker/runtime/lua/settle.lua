#!lua flags=allow-oom
--[[
  End a batch of jobs that we claimed, or give them back: each whole or not at all, and only while its lease bears our
  token. To send it again, after a reply that was lost, changes nothing.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set
  KEYS[3]  sorted set: ids of jobs to abort
  KEYS[4]  dead letters, sorted set: ids by time of death

  ARGV[1]  token
  ARGV[2]  now, ms since the epoch
  ARGV[3]  most dead letters to keep
  ARGV[4]  prefix of in-progress keys
  ARGV[5]  prefix of payload keys
  ARGV[6]  prefix of keys that count tries
  ARGV[7]  prefix of result keys
  and five for each job, n being the first:
  ARGV[n]  id
  'end'    , result ('' to keep none), ms to keep it (0 for ever), ms to leave the in-progress mark (0 to remove it; a
           cron job's keeps a late replica from running it again)
  'dead'   , the same, but the last is what the dead letter says, JSON
  'back'   , due time in ms, 1 if the try counts, 0 if it is taken back, ''

  Returns for each job 1, or 0 where the lease is no longer ours and nothing was changed.
]]
local queue, leases, abort, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, now, most_dead = ARGV[1], ARGV[2], tonumber(ARGV[3])
local in_progress, job, retry, result = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local settled, ended, back, garbage = {}, {}, {}, {}

-- What can fail, for want of memory say, comes before what removes.
for n = 8, #ARGV, 5 do
  local id, kind, data, amount, last = ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3], ARGV[n + 4]
  local mark = in_progress .. id
  local ours = redis.call('GET', mark) == token
  settled[#settled + 1] = ours and 1 or 0
  if ours and kind == 'back' then
    redis.call('ZADD', queue, 'XX', data, id) -- XX: a job that was purged meanwhile stays away
    if amount == '0' and redis.call('DECR', retry .. id) <= 0 then
      garbage[#garbage + 1] = retry .. id
    end
    back[#back + 1] = id
    garbage[#garbage + 1] = mark
  elseif ours then
    if data ~= '' then
      if amount == '0' then
        redis.call('SET', result .. id, data)
      else
        redis.call('SET', result .. id, data, 'PX', amount)
      end
    end
    if kind == 'dead' then
      local payload = redis.call('GET', job .. id) or ''
      redis.call('HSET', dead .. ':' .. id, 'payload', payload, 'letter', last)
      redis.call('ZADD', dead, now, id)
    end
    if kind == 'end' and last ~= '0' then
      redis.call('PEXPIRE', mark, last)
    else
      garbage[#garbage + 1] = mark
    end
    ended[#ended + 1] = id
    garbage[#garbage + 1] = job .. id
    garbage[#garbage + 1] = retry .. id
  end
end

if #ended > 0 then
  redis.call('ZREM', queue, unpack(ended))
  redis.call('ZREM', leases, unpack(ended))
  redis.call('ZREM', abort, unpack(ended))
end
if #back > 0 then
  redis.call('ZREM', leases, unpack(back))
end
for first = 1, #garbage, 1000 do
  redis.call('UNLINK', unpack(garbage, first, math.min(first + 999, #garbage)))
end
local too_many = redis.call('ZCARD', dead) - most_dead
if too_many > 0 then
  local oldest = redis.call('ZPOPMIN', dead, too_many)
  for i = 1, #oldest, 2 do
    redis.call('UNLINK', dead .. ':' .. oldest[i])
  end
end
return settled
