#!lua flags=allow-oom
--[[
  Ring a bell: of the workers whose claims wait for it, the first looks for jobs. It rings also when memory is full, as
  what they do makes room.

  KEYS[1]  bell, sorted set

  Returns 1, or 0 where it rang already, and nobody waits.
]]
local rung = redis.call('ZADD', KEYS[1], 0, '')
redis.call('EXPIRE', KEYS[1], 60) -- whoever comes to wait later has looked before
return rung
