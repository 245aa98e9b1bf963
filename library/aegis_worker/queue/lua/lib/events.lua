-- Redis notifies the workers that listen to a queue of each ZADD, but not of increments. A script that writes no more
-- jobs than this increments their scores, one by one, so that it notifies nobody; of more jobs one ZADD is cheaper.
local MOST_SILENT = 8
