#!lua flags=allow-oom
--[[
  Renew the leases of jobs that we run or whose ends we have yet to store.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set
  KEYS[3]  when somebody last claimed or renewed, ms; of an outage, see claim.lua

  ARGV[1]  ms until a lease lapses
  ARGV[2]  ms after the last claim or renewal at which leases lapse at the soonest
  ARGV[3]  ms in which all leases are renewed after an outage
  ARGV[4]  prefix of in-progress keys
  and for each job: ARGV[n] its id, ARGV[n + 1] the token of its lease

  Returns { id, token } of each that is lost: somebody else has it, or its end was stored just now.
]]
local queue, leases = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost = {}

-- As claim.lua does: whoever comes first after an outage has the others wait.
local lease, seen = ARGV[1], tonumber(redis.call('GET', KEYS[3]))
local quiet = seen and now - seen
if quiet and quiet > tonumber(ARGV[2]) and redis.call('ZCOUNT', leases, '-inf', '(' .. now) > 0 then
  redis.call('SET', KEYS[3], now + ARGV[3])
elseif not quiet or quiet > lease / 12 then
  redis.call('SET', KEYS[3], now)
end

for n = 5, #ARGV, 2 do
  local id, token = ARGV[n], ARGV[n + 1]
  local mark = ARGV[4] .. id
  local holder = redis.call('GET', mark)
  local ours = holder == token
  if ours then
    redis.call('PEXPIRE', mark, lease)
  elseif not holder and redis.call('ZSCORE', leases, id) and redis.call('ZSCORE', queue, id) then
    redis.call('SET', mark, token, 'PX', lease) -- it lapsed, and nobody took it
    ours = true
  end
  if ours then
    redis.call('ZADD', leases, now + lease, id)
  else
    lost[#lost + 1] = { id, token }
  end
end
return lost
