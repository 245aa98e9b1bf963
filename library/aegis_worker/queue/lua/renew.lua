#!lua flags=allow-oom
--[[
  Renew the leases of jobs that a worker runs, or has run and not settled yet.

  KEYS[1]  The queue, a sorted set of job ids.
  KEYS[2]  The leases, a sorted set: job ids by the time in ms at which the lease lapses.
  KEYS[3]  The time in ms of the last claim or renewal of anybody; see lib/outage.lua.

  ARGV[1]  After how many ms a lease lapses that is not renewed.
  ARGV[2]  How many ms after the last claim or renewal the first lease can lapse.
  ARGV[3]  Within how many ms after an outage all workers have renewed their leases.
  Then for each job: its id, and the token of its lease.

  Returns { id, token } for each job whose lease is lost: another worker has it, or it was settled just now.
]]
-- keys: IN_PROGRESS
-- include: clock, outage
local queue, leases, last_active = KEYS[1], KEYS[2], KEYS[3]
local lease_ms, lapse_ms, renewal_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local lost = {}

-- The renewal that comes first after an outage makes the others wait with their claims; it does not wait itself.
wait_after_outage(last_active, redis.call('GET', last_active), leases, now, lease_ms, lapse_ms, renewal_ms)

for n = 4, #ARGV, 2 do
  local id, token = ARGV[n], ARGV[n + 1]
  local mark = IN_PROGRESS .. id
  local holder = redis.call('GET', mark)
  local ours = holder == token
  if ours then
    redis.call('PEXPIRE', mark, ARGV[1])
  elseif not holder and redis.call('ZSCORE', leases, id) and redis.call('ZSCORE', queue, id) then
    redis.call('SET', mark, token, 'PX', ARGV[1]) -- the lease had lapsed, and nobody has taken the job
    ours = true
  end
  if ours then
    redis.call('ZADD', leases, now + lease_ms, id)
  else
    lost[#lost + 1] = { id, token }
  end
end
return lost
