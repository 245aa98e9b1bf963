"""The command lines, as lists of arguments: nothing here runs anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .certificates import CA, NAMES, SERVER
from .configuration import ROOT, Environment

HEALTHY_WITHIN_S = 120
KINDS = ("container", "network", "volume")  #: of what a project has, in the order in which it can be removed
KERNEL_LOG = ["dmesg", "--time-format", "iso"]
_WAIT = ("--wait", "--wait-timeout", str(HEALTHY_WITHIN_S))

_PASSWORD = "/run/secrets/redis_admin_password"  # noqa: S105 - the file
#: No process shows the password; but a session reads what is typed, so it has its password in the environment.
_REDIS_CLI = f'exec redis-cli -e --user admin --askpass $REDIS_CLI_TLS "$@" < {_PASSWORD}'
_REDIS_CLI_SESSION = f'REDISCLI_AUTH="$(cat {_PASSWORD})" exec redis-cli -e --user admin $REDIS_CLI_TLS "$@"'


def compose(environment: Environment, *arguments: str) -> list[str]:
    """``docker compose`` with an environment's files; which layers they make is in the files."""
    files = [part for file in environment.files for part in ("--env-file", str(file.relative_to(ROOT)))]
    return ["docker", "compose", *files, *arguments]


def up(environment: Environment, *, build: bool) -> list[str]:
    """Create and start everything, and wait until all of it is healthy; without ``build`` what is missing is built."""
    return compose(environment, "up", "--detach", *(["--build"] if build else []), "--remove-orphans", *_WAIT)


def wait(environment: Environment) -> list[str]:
    """Start what has ended, and wait until all is healthy."""
    return compose(environment, "up", "--detach", "--no-recreate", "--no-build", *_WAIT)


def scale(environment: Environment, replicas: Mapping[str, int], *, wait: bool = True) -> list[str]:
    """Bring services to a number of replicas, and leave those that run alone, whatever they were started with."""
    numbers = [part for service, number in replicas.items() for part in ("--scale", f"{service}={number}")]
    options = ["--detach", "--no-recreate", "--no-deps", "--no-build", *(_WAIT if wait else []), *numbers]
    return compose(environment, "up", *options, *replicas)


def recreate(environment: Environment, service: str) -> list[str]:
    """Start one service anew with what is configured now, and wait until it is healthy."""
    return compose(environment, "up", "--detach", "--force-recreate", "--no-deps", *_WAIT, service)


def stop(containers: Sequence[str], grace_s: int) -> list[str]:
    """Stop containers, all at a time; one that takes longer than the grace is killed."""
    return ["docker", "stop", "-t", str(grace_s), *containers]


def remove(containers: Sequence[str]) -> list[str]:
    """Remove containers that have ended."""
    return ["docker", "rm", *containers]


def list_containers(project: str) -> list[str]:
    """Print the ids of a project's containers, without those of `docker compose run`."""
    labels = (f"com.docker.compose.project={project}", "com.docker.compose.oneoff=False")
    return ["docker", "ps", "--all", "--quiet", *(part for label in labels for part in ("--filter", f"label={label}"))]


def list_checkouts(project: str) -> list[str]:
    """Print for each of a project's containers the folder of the Compose files that it was started with."""
    folder = '{{.Label "com.docker.compose.project.working_dir"}}'
    return ["docker", "ps", "--all", "--format", folder, "--filter", f"label=com.docker.compose.project={project}"]


def list_all(kind: str, project: str) -> list[str]:
    """Print the ids of all that the engine has of a project, of one of the ``KINDS``."""
    every = ["--all"] if kind == "container" else []
    return ["docker", kind, "ls", *every, "--quiet", "--filter", f"label=com.docker.compose.project={project}"]


def remove_all(kind: str, ids: Sequence[str]) -> list[str]:
    """Remove things of one of the ``KINDS``; containers that run, too, and volumes of theirs that have no name."""
    return ["docker", kind, "rm", *(["--force", "--volumes"] if kind == "container" else []), *ids]


def engine_events(project: str, since: float) -> list[str]:
    """Print what the engine remembers of a project's containers, health checks' runs left out, as lines of JSON."""
    kinds = ("start", "die", "oom", "kill", "restart", "destroy", "health_status")
    labels = (f"com.docker.compose.project={project}", "com.docker.compose.oneoff=False")
    filters = (*(f"label={label}" for label in labels), "type=container", *(f"event={kind}" for kind in kinds))
    period = ["--since", f"{int(since)}", "--until", "0s"]
    return ["docker", "events", *period, "--format", "{{json .}}", *(p for f in filters for p in ("--filter", f))]


def run_in(
    environment: Environment, service: str, command: Sequence[str], *, terminal: bool, **variables: str
) -> list[str]:
    """Run a command in a container of a service that is up."""
    given = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    return compose(environment, "exec", *([] if terminal else ["-T"]), *given, service, *command)


def redis_cli(environment: Environment, arguments: Sequence[str], *, terminal: bool) -> list[str]:
    """``redis-cli`` as ``admin``, in the environment's database: one command, or a session where there is none."""
    database = environment.values["REDIS_DB"]
    script = _REDIS_CLI if arguments else _REDIS_CLI_SESSION
    return run_in(
        environment, "redis", ["sh", "-c", script, "redis-cli", "-n", database, *arguments], terminal=terminal
    )


def save(environment: Environment) -> list[str]:
    """Have all data on disk before it returns, as OK."""
    return redis_cli(environment, ["SAVE"], terminal=False)


def redis_apart(
    environment: Environment, name: str, steps: Sequence[str], *, stdin: bool, **variables: str
) -> list[str]:
    """Run steps of redis/data.sh in a container like Redis's, with its volume, that listens to nobody."""
    scripts = [
        part for file in ("data.sh", "survey.lua") for part in ("--volume", f"{ROOT}/redis/{file}:/etc/redis/{file}:ro")
    ]
    given = [part for key, value in variables.items() for part in ("--env", f"{key}={value}")]
    options = ["--rm", "--no-deps", "-T", *([] if stdin else ["--interactive=false"]), "--name", name, *scripts, *given]
    return compose(environment, "run", *options, "redis", "sh", "/etc/redis/data.sh", *steps)


def check_worker(environment: Environment, service: str) -> list[str]:
    """Have the settings and the code of a service of workers checked, in a container beside those that run."""
    options = ["--rm", "--no-deps", "-T", "--interactive=false"]
    return compose(environment, "run", *options, service, "worker", "--check")


def remove_now(container: str) -> list[str]:
    """Remove a container, also one that runs."""
    return ["docker", "rm", "--force", container]


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
