#!lua flags=allow-oom
--[[
  Renew the leases of jobs that we run or whose ends we have yet to store.

  KEYS[1]  queue, sorted set
  KEYS[2]  leases, sorted set
  KEYS[3]  when somebody last claimed or renewed, ms; of an outage, see claim.lua

  ARGV[1]  ms until a lease lapses
  ARGV[2]  prefix of in-progress keys
  and for each job: ARGV[n] its id, ARGV[n + 1] the token of its lease

  Returns { id, token } of each that is lost: somebody else has it, or its end was stored just now.
]]
local queue, leases = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost = {}

-- As claim.lua does: whoever comes first after an outage has the others wait.
local lease, seen = ARGV[1], tonumber(redis.call('GET', KEYS[3]))
local lapse_after, quiet = math.max(lease * 2 / 3 - 250, lease / 2), seen and now - seen
if quiet and quiet > lapse_after and redis.call('ZCOUNT', leases, '-inf', '(' .. now) > 0 then
  redis.call('SET', KEYS[3], now + lease / 6 + 1000)
elseif not quiet or quiet > lease / 12 then
  redis.call('SET', KEYS[3], now)
end

for n = 3, #ARGV, 2 do
  local id, token = ARGV[n], ARGV[n + 1]
  local mark = ARGV[2] .. id
  local holder = redis.call('GET', mark)
  if holder == token then
    redis.call('PEXPIRE', mark, ARGV[1])
  elseif not holder and redis.call('ZSCORE', leases, id) and redis.call('ZSCORE', queue, id) then
    redis.call('SET', mark, token, 'PX', ARGV[1]) -- it lapsed, and nobody took it
  else
    lost[#lost + 1] = { id, token }
    id = nil
  end
  if id then
    redis.call('ZADD', leases, now + ARGV[1], id)
  end
end
return lost
