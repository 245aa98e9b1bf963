--[[
  Remove jobs that wait, with all that belongs to them; those that run are left alone.

  KEYS[1]  queue, sorted set
  KEYS[2]  sorted set: ids of jobs to abort

  ARGV[1]  most jobs to remove, at most a few thousand: Redis does nothing else meanwhile
  ARGV[2]  prefix of in-progress keys
  ARGV[3]  prefix of payload keys
  ARGV[4]  prefix of keys that count tries
  ARGV[5]  prefix of keys that tell what the last try has raised

  Returns how many were removed; fewer than asked for: none is left that waits.
]]
local queue, wanted = KEYS[1], tonumber(ARGV[1])
local removed, doomed, offset = {}, {}, 0

-- Running jobs stay in the queue, so a page may hold some that are not for us.
while #removed < wanted do
  local page = redis.call('ZRANGE', queue, offset, offset + wanted - 1)
  for _, id in ipairs(page) do
    if #removed < wanted and redis.call('EXISTS', ARGV[2] .. id) == 0 then
      removed[#removed + 1] = id
      doomed[#doomed + 1] = ARGV[3] .. id
      doomed[#doomed + 1] = ARGV[4] .. id
      doomed[#doomed + 1] = ARGV[5] .. id
    end
  end
  if #page < wanted then
    break
  end
  offset = offset + wanted
end
if #removed > 0 then
  redis.call('ZREM', queue, unpack(removed))
  redis.call('ZREM', KEYS[2], unpack(removed))
  redis.call('UNLINK', unpack(doomed))
end
return #removed
