-- After an outage of Redis nobody claims until all workers had time to renew the leases that lapsed during it. Somebody
-- claims or renews so often that without an outage no lease lapses within `lapse_ms` of the last claim or renewal. The
-- time of that is the value of `key`; where it lies in the future, it is the time until which nobody may claim.
--
-- Writes the new value, and returns the ms during which nobody may claim. Without an outage it is 0 or less.
local function wait_after_outage(key, value, leases, now, lease_ms, lapse_ms, renewal_ms)
  local silent_ms = tonumber(value) and now - value
  if silent_ms and silent_ms > lapse_ms and redis.call('ZCOUNT', leases, '-inf', '(' .. now) > 0 then
    redis.call('SET', key, now + renewal_ms)
    return renewal_ms
  end
  if not silent_ms or silent_ms > lease_ms / 12 then
    redis.call('SET', key, now)
  end
  return -(silent_ms or 0)
end
