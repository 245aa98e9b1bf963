--[[
  Delete dead letters.

  KEYS[1]  The dead letters, a sorted set: job ids by the time of death in ms.
  KEYS[2]  The dead letters, a hash: for each its text and its payload, and how many bytes all of them have.

  ARGV     For each letter, the id of its job.

  Returns how many letters there were.
]]
-- include: letters
local dead, letters = KEYS[1], KEYS[2]
local deleted, bytes = 0, 0

for _, id in ipairs(ARGV) do
  bytes = bytes + delete_letter(letters, id)
  deleted = deleted + redis.call('ZREM', dead, id)
end
if bytes > 0 then
  add_bytes(letters, -bytes)
end
return deleted
