#!/bin/sh
# The container's health: every worker process has beaten within 15 seconds. Each touches its file once a second for
# as long as its loop turns and Redis answers. A shell and a `find`, as starting Python at every check would cost more.
set -eu
set -- "$WORKER_BEAT_DIR"/*
silent=$(find "$@" ! -newermt '15 seconds ago' -printf '%f ')
[ -z "$silent" ] || { echo "no beat: $silent"; exit 1; }
