#!lua flags=allow-oom
--[[
  Wake one of the workers that idle. Their next claims wait in Redis until a sorted set, the bell, has a member, which
  one of them takes. The script also runs when memory is full, because the end of a job frees memory.

  KEYS[1]  The bell, a sorted set.

  Returns 1, or 0 if the bell has a member already, because no claim waits for it.
]]
local bell = KEYS[1]
local added = redis.call('ZADD', bell, 0, '')
redis.call('EXPIRE', bell, 60) -- a worker that begins to wait later has polled the queue before
return added
