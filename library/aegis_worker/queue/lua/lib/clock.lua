-- The server's time in ms since the epoch. All scripts use it, because the clocks of replicas differ.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
