--[[
  End a job that we claimed: store its result and take it out of the queue, in one step.

  KEYS[1]  queue, sorted set
  KEYS[2]  payload
  KEYS[3]  in-progress mark
  KEYS[4]  count of tries
  KEYS[5]  result
  KEYS[6]  sorted set: ids of jobs to abort

  ARGV[1]  job id
  ARGV[2]  our token
  ARGV[3]  result, '' to keep none
  ARGV[4]  ms to keep the result, 0 for ever
  ARGV[5]  ms to leave the in-progress mark, 0 to remove it (a cron job's keeps a late replica from running it again)

  Returns 1, or 0 where the claim is no longer ours and nothing was changed.
]]
local id, result = ARGV[1], ARGV[3]

if redis.call('GET', KEYS[3]) ~= ARGV[2] then
  return 0
end
if result ~= '' then
  if ARGV[4] == '0' then
    redis.call('SET', KEYS[5], result)
  else
    redis.call('SET', KEYS[5], result, 'PX', ARGV[4])
  end
end
redis.call('ZREM', KEYS[1], id)
redis.call('ZREM', KEYS[6], id)
redis.call('DEL', KEYS[2], KEYS[4])
if ARGV[5] == '0' then
  redis.call('DEL', KEYS[3])
else
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
end
return 1
