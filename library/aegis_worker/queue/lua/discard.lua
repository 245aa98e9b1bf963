--[[
  Delete dead letters.

  KEYS[1]  dead letters, sorted set: ids by time of death
  KEYS[2]  dead letters, hash: 'letter:' .. id and 'payload:' .. id, and their 'bytes'

  ARGV     the ids

  Returns how many there were.
]]
local dead, letters = KEYS[1], KEYS[2]
local deleted, bytes = 0, 0

for _, id in ipairs(ARGV) do
  local payload, letter = 'payload:' .. id, 'letter:' .. id
  bytes = bytes + redis.call('HSTRLEN', letters, payload) + redis.call('HSTRLEN', letters, letter)
  redis.call('HDEL', letters, payload, letter)
  deleted = deleted + redis.call('ZREM', dead, id)
end
if bytes > 0 and redis.call('HINCRBY', letters, 'bytes', -bytes) <= 0 then
  redis.call('HDEL', letters, 'bytes')
end
return deleted
