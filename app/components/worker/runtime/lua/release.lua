--[[
  Put a job that we claimed back into its queue: for its next try, or untouched when the worker stops.

  KEYS[1]  queue, sorted set
  KEYS[2]  in-progress mark
  KEYS[3]  count of tries

  ARGV[1]  job id
  ARGV[2]  our token
  ARGV[3]  due time of the next try in ms, '' to keep the one it has
  ARGV[4]  1 if the try counts, 0 to take it back

  Returns 1, or 0 where the claim is no longer ours and nothing was changed.
]]
local id, due = ARGV[1], ARGV[3]

if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
if due ~= '' then
  redis.call('ZADD', KEYS[1], 'XX', due, id) -- XX: a job that was purged meanwhile stays away
end
if ARGV[4] == '0' and redis.call('DECR', KEYS[3]) <= 0 then
  redis.call('DEL', KEYS[3])
end
redis.call('DEL', KEYS[2])
return 1
