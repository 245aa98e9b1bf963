#!/bin/sh
# The health check of the container: the beat file of each worker process is at most 15 seconds old. A process touches
# its file once a second while its event loop turns and Redis answers. This is a shell script, because to start Python
# for each check would cost more.
set -eu
set -- "$WORKER_BEAT_DIR"/*
silent=$(find "$@" ! -newermt '15 seconds ago' -printf '%f ')
[ -z "$silent" ] || { echo "no beat: $silent"; exit 1; }
