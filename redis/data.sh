#!/bin/sh
# Work on copies of Redis's data, in a container of its own that has the volume /data and listens to nobody. Arguments
# are steps; the first that fails ends it, with the reason as the last line of standard error.
#
#   appendonlydir  what Redis has, and nobody else changes
#   taken          data as it was taken, from Redis or an archive
#   loaded         the same with a server that has loaded it
#   ready          what that server has written
#   previous       what appendonlydir was, from the exchange until the new one has proved good
set -eu
cd /data
manifest=appendonlydir/appendonly.aof.manifest

# Begin anew.
clear() {
  _mend
  rm -rf taken loaded ready previous
}

# -- take: files are not copied but get another name, and none of them is written to -----------------------------------

# The last snapshot that Redis has saved, as an append-only directory of which it is the base.
take_snapshot() {
  rm -rf taken
  mkdir -p taken/appendonlydir
  ln dump.rdb taken/appendonlydir/appendonly.aof.1.base.rdb
  echo 'file appendonly.aof.1.base.rdb seq 1 type b' >taken/$manifest
  head -c 9 dump.rdb
  echo
}

# What a Redis that was stopped has left, if anything.
take_current() {
  rm -rf taken
  mkdir -p taken/appendonlydir
  for file in appendonlydir/*; do
    [ ! -f "$file" ] || ln "$file" "taken/$file"
  done
}

# An archive's, from standard input.
take_archive() {
  rm -rf taken
  mkdir taken
  tar -x -f - -C taken
}

# What was made ready, for a server of another image.
take_ready() {
  rm -rf taken
  mkdir taken
  mv ready/appendonlydir taken/
}

# -- load and write -------------------------------------------------------------------------------------------------

# Load what was taken; print its counts as JSON. DELAY: ms by which to put off what expires; SWAP: two databases that
# change places.
survey() {
  _serve
  cli get ops:counts
  cli shutdown nosave
  wait # it still has files open
  rm -rf loaded
}

# The same, and have the server write it anew: RDB=yes in its own format, RDB=no as commands, which any server reads.
make_ready() {
  _serve
  cli get ops:counts
  cli del ops:counts >/dev/null
  cli bgrewriteaof >/dev/null
  until cli info persistence | grep -q '^aof_rewrite_in_progress:0'; do sleep 0.1; done
  cli info persistence | grep -q '^aof_last_bgrewrite_status:ok' || fail 'the data could not be written'
  cli shutdown nosave
  wait # it still has files open
  rm -rf ready
  mkdir ready
  mv loaded/appendonlydir ready/
  rm -rf loaded
}

_serve() {
  rm -rf loaded
  mkdir -p loaded/appendonlydir
  for file in taken/appendonlydir/*; do
    [ ! -f "$file" ] || ln "$file" loaded/appendonlydir/
  done
  # A last file of commands, which the server runs while it loads. Nothing expires until all is counted and written.
  sequence=$(sed -n 's/.* seq \([0-9]*\) type i.*/\1/p' loaded/$manifest 2>/dev/null | tail -n 1)
  cat loaded/$manifest >loaded/list 2>/dev/null || true
  echo "file survey.aof seq $((${sequence:-0} + 1)) type i" >>loaded/list
  mv -f loaded/list loaded/$manifest
  {
    # shellcheck disable=SC2086
    [ -z "${SWAP:-}" ] || command_of SWAPDB $SWAP
    command_of DEBUG SET-ACTIVE-EXPIRE 0
    command_of SELECT 0
    command_of EVAL "$(cat /etc/redis/survey.lua)" 1 ops:counts "${DELAY:-0}"
  } >loaded/appendonlydir/survey.aof
  {
    redis-server /etc/redis/redis.conf --dir /data/loaded --aclfile '' --port 0 --unixsocket /data/loaded/socket \
      --save '' --maxmemory 0 --auto-aof-rewrite-percentage 0 --aof-use-rdb-preamble "${RDB:-yes}" >loaded/log 2>&1 || true
    touch loaded/ended
  } &
  until cli ping 2>/dev/null | grep -qx PONG; do
    [ ! -e loaded/ended ] || fail "$(tail -n 1 loaded/log)"
    sleep 0.1
  done
}

cli() { redis-cli -s /data/loaded/socket "$@"; }

command_of() { # as the append-only file has it
  printf '*%d\r\n' $#
  for word; do printf '$%d\r\n%s\r\n' ${#word} "$word"; done
}

# -- give -----------------------------------------------------------------------------------------------------------

pack() {
  tar -c -f - -C taken appendonlydir
  rm -rf taken
}

# Have Redis find the new data at its next start, or else the old one.
exchange() {
  trap '' INT TERM
  rm -rf previous
  if [ -e appendonlydir ]; then mv appendonlydir previous; else mkdir previous; fi
  mv ready/appendonlydir appendonlydir
}

exchange_back() {
  trap '' INT TERM
  rm -rf ready
  mkdir ready
  mv appendonlydir ready/
  mv previous appendonlydir
}

is_exchanged() {
  _mend
  if [ -e previous ]; then echo yes; fi
}

_mend() { # where only half of an exchange was done
  [ -e appendonlydir ] || [ ! -e previous ] || mv previous appendonlydir
}

fail() {
  echo "$1" >&2
  exit 1
}

for step; do "$step"; done
