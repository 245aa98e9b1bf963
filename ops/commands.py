"""The command lines, as lists of arguments: nothing here runs anything."""

from __future__ import annotations

from collections.abc import Sequence

from .certificates import CA, NAMES, SERVER
from .configuration import ROOT, Environment

HEALTHY_WITHIN_S = 120

_REDIS_CLI = 'REDISCLI_AUTH="$(cat /run/secrets/redis_admin_password)" exec redis-cli --user admin $REDIS_CLI_TLS "$@"'


def compose(environment: Environment, *arguments: str) -> list[str]:
    """``docker compose`` with an environment's files; which layers they make is in the files."""
    files = [part for file in environment.files for part in ("--env-file", str(file.relative_to(ROOT)))]
    return ["docker", "compose", *files, *arguments]


def up(environment: Environment) -> list[str]:
    """Build, create and start everything, and wait until all of it is healthy."""
    wait = ["--wait", "--wait-timeout", str(HEALTHY_WITHIN_S)]
    return compose(environment, "up", "--detach", "--build", "--remove-orphans", *wait)


def scale(environment: Environment, service: str) -> list[str]:
    """Bring one service to the number of replicas that its environment says, and leave those that run alone."""
    wait = ["--wait", "--wait-timeout", str(HEALTHY_WITHIN_S)]
    return compose(environment, "up", "--detach", "--no-recreate", "--no-deps", *wait, service)


def run_in(
    environment: Environment, service: str, command: Sequence[str], *, terminal: bool, **variables: str
) -> list[str]:
    """Run a command in a container of a service that is up."""
    given = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    return compose(environment, "exec", *([] if terminal else ["-T"]), *given, service, *command)


def redis_cli(environment: Environment, arguments: Sequence[str], *, terminal: bool) -> list[str]:
    """``redis-cli`` as ``admin``, in the environment's database."""
    database = environment.values["REDIS_DB"]
    return run_in(
        environment, "redis", ["sh", "-c", _REDIS_CLI, "redis-cli", "-n", database, *arguments], terminal=terminal
    )


def set_passwords(environment: Environment, user: str, hashes: Sequence[str]) -> list[str]:
    """Have the running Redis take these hashes of passwords, and no other; who is logged in stays so."""
    rules = ["resetpass", *(f"#{value}" for value in hashes)]
    return redis_cli(environment, ["ACL", "SETUSER", user, *rules], terminal=False)


def print_certificates(environment: Environment) -> list[str]:
    """Print the files with certificates, one after the other, as the container of Redis has them."""
    return run_in(environment, "redis", ["cat", *(f"/run/secrets/{name}.crt" for name in NAMES)], terminal=False)


def reload_certificates(environment: Environment) -> list[str]:
    """Have Redis read its certificates from their files, for connections to come; it prints OK."""
    files = {"ca-cert": f"{CA}.crt", "cert": f"{SERVER}.crt", "key": f"{SERVER}.key"}
    settings = [part for name, file in files.items() for part in (f"tls-{name}-file", f"/run/secrets/{file}")]
    # Within the container, and what it still has may have expired or be another CA's: no reason not to change it.
    return redis_cli(environment, ["--insecure", "config", "set", *settings], terminal=False)


def replicas_variable(queue: str | None) -> tuple[str, str]:
    """Return the service of a queue (None: the one that serves them all), and the variable with its replicas."""
    if queue is None:
        return "worker", "WORKER_REPLICAS"
    return f"worker-{queue.replace('_', '-')}", f"WORKER_{queue.upper().replace('-', '_')}_REPLICAS"
