-- keys: LETTER_FIELD, PAYLOAD_FIELD, BYTES_FIELD

-- Returns how many bytes the dead letter of a job has; 0 where there is none.
local function letter_bytes(letters, id)
  local bytes = redis.call('HSTRLEN', letters, LETTER_FIELD .. id)
  -- A letter is never empty, and no payload is there without its letter.
  return bytes == 0 and 0 or bytes + redis.call('HSTRLEN', letters, PAYLOAD_FIELD .. id)
end

-- Deletes the dead letter of a job from the hash, and returns how many bytes it had.
local function delete_letter(letters, id)
  local bytes = letter_bytes(letters, id)
  redis.call('HDEL', letters, PAYLOAD_FIELD .. id, LETTER_FIELD .. id)
  return bytes
end

-- Adds to the count of bytes, and returns it. The count is deleted with the last letter.
local function add_bytes(letters, change)
  local bytes = redis.call('HINCRBY', letters, BYTES_FIELD, change)
  if bytes <= 0 then
    redis.call('HDEL', letters, BYTES_FIELD)
  end
  return bytes
end
