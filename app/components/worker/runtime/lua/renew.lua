#!lua flags=allow-oom
--[[
  Renew the leases of jobs that we run or whose results we have yet to store.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set

  ARGV[1]  token
  ARGV[2]  now, ms since the epoch
  ARGV[3]  ms until a lease lapses
  ARGV[4]  prefix of in-progress keys
  and for each job: ARGV[n] its id, ARGV[n + 1] the time in ms by which it has ended for certain

  Returns the ids of those that are lost: somebody else has them, or they are done.
]]
local queue, leases = KEYS[1], KEYS[2]
local lapses = tonumber(ARGV[2]) + tonumber(ARGV[3])
local lost = {}

for n = 5, #ARGV, 2 do
  local id = ARGV[n]
  local mark = ARGV[4] .. id
  local holder = redis.call('GET', mark)
  if holder == ARGV[1] then
    redis.call('PEXPIRE', mark, ARGV[3])
  elseif not holder and redis.call('ZSCORE', queue, id) then
    redis.call('SET', mark, ARGV[1], 'PX', ARGV[3]) -- it lapsed, or Redis forgot it, and nobody has it
  else
    lost[#lost + 1] = id
    id = nil
  end
  if id and redis.call('ZADD', leases, lapses, id) == 1 then
    -- Once in a job's life: out of the way of those that are due.
    redis.call('ZADD', queue, 'XX', ARGV[n + 1], id)
  end
end
return lost
