--[[
  Count what there is in each database, and put off when keys expire. It is run while a server loads its data, when no
  key has expired yet, so that the counts are those of the data, however old it is.

  KEYS[1]  where to leave the counts, in database 0; without it they are only returned
  ARGV[1]  ms by which to put off what expires. Marks and records of workers are left out: those are gone.

  Returns JSON, { database: { keys: without marks and records of workers, jobs: payloads, running: marks, results,
                              queues: { name: length }, dead: { queue: letters } } }
]]
local delay, counts = tonumber(ARGV[1]), {}

local function survey()
  local found = { keys = 0, jobs = 0, running = 0, results = 0, queues = {}, dead = {} }
  for _, key in ipairs(redis.call('KEYS', '*')) do
    if key:find('^arq:in%-progress:') then
      found.running = found.running + 1
    elseif not key:find('^worker:health:') then
      found.keys = found.keys + 1
      if key:find('^arq:job:') then
        found.jobs = found.jobs + 1
      elseif key:find('^arq:result:') then
        found.results = found.results + 1
      elseif key:find('^arq:queue') and redis.call('TYPE', key).ok == 'zset' then
        found.queues[key] = redis.call('ZCARD', key)
      elseif key:find('^worker:dead:') and redis.call('TYPE', key).ok == 'zset' then
        found.dead[key:sub(13)] = redis.call('ZCARD', key)
      end
      local expires = delay > 0 and redis.call('PEXPIRETIME', key) or -1
      if expires > 0 then
        redis.call('PEXPIREAT', key, expires + delay)
      end
    end
  end
  return found
end

local index = 0
while not redis.pcall('SELECT', index).err do
  if redis.call('DBSIZE') > 0 then
    counts[tostring(index)] = survey()
  end
  index = index + 1
end
local json = cjson.encode(counts)
if KEYS[1] then
  redis.call('SELECT', 0)
  redis.call('SET', KEYS[1], json)
end
return json
