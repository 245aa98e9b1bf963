--[[
  Remove jobs that wait in a queue, with all that belongs to them. It leaves the jobs that run alone.

  KEYS[1]  The queue, a sorted set of job ids.
  KEYS[2]  The jobs to abort, a sorted set of ids.

  ARGV[1]  How many jobs to remove at most. It should be a few thousand or fewer, as Redis does nothing else meanwhile.

  Returns how many jobs were removed. If these are fewer than asked for, none is left that waits.
]]
-- keys: IN_PROGRESS, JOB, RETRY, RAISED
local queue, abort, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
local removed, garbage, offset = {}, {}, 0

-- Jobs that run stay in the queue, so that a page may hold some which have to be skipped.
while #removed < most do
  local page = redis.call('ZRANGE', queue, offset, offset + most - 1)
  for _, id in ipairs(page) do
    if #removed < most and redis.call('EXISTS', IN_PROGRESS .. id) == 0 then
      removed[#removed + 1] = id
      garbage[#garbage + 1] = JOB .. id
      garbage[#garbage + 1] = RETRY .. id
      garbage[#garbage + 1] = RAISED .. id
    end
  end
  if #page < most then
    break
  end
  offset = offset + most
end
if #removed > 0 then
  redis.call('ZREM', queue, unpack(removed))
  redis.call('ZREM', abort, unpack(removed))
  redis.call('UNLINK', unpack(garbage))
end
return #removed
