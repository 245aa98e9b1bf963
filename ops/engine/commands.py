"""The command lines, as lists of arguments. Nothing here runs anything."""

from collections.abc import Mapping, Sequence

from ..config import ROOT
from ..config.environment import Environment

HEALTHY_WITHIN_S = 120
KINDS = ("container", "network", "volume")  #: of things that a project has, in the order in which they can be removed
KERNEL_LOG = ["dmesg", "--time-format", "iso"]
_WAIT = ("--wait", "--wait-timeout", str(HEALTHY_WITHIN_S))

_PASSWORD = "/run/secrets/redis_admin_password"  # noqa: S105 - the file
#: No process shows the password. A session needs its standard input, so it has the password in its environment.
_REDIS_CLI = f'exec redis-cli -e --user admin --askpass $REDIS_CLI_TLS "$@" < {_PASSWORD}'
_REDIS_CLI_SESSION = f'REDISCLI_AUTH="$(cat {_PASSWORD})" exec redis-cli -e --user admin $REDIS_CLI_TLS "$@"'


def compose(environment: Environment, *arguments: str) -> list[str]:
    """``docker compose`` with an environment's files. Those name the layers."""
    files = [part for file in environment.files for part in ("--env-file", str(file.relative_to(ROOT)))]
    return ["docker", "compose", *files, *arguments]


def up(environment: Environment, *, build: bool) -> list[str]:
    """Create and start everything, and wait until all is healthy. Without ``build``, only missing images are built."""
    return compose(environment, "up", "--detach", *(["--build"] if build else []), "--remove-orphans", *_WAIT)


def wait(environment: Environment) -> list[str]:
    """Start what has ended, and wait until all is healthy."""
    return compose(environment, "up", "--detach", "--no-recreate", "--no-build", *_WAIT)


def scale(environment: Environment, replicas: Mapping[str, int], *, wait: bool = True) -> list[str]:
    """Bring services to a number of replicas. Those that run stay as they are, whatever they were started with."""
    numbers = [part for service, number in replicas.items() for part in ("--scale", f"{service}={number}")]
    options = ["--detach", "--no-recreate", "--no-deps", "--no-build", *(_WAIT if wait else []), *numbers]
    return compose(environment, "up", *options, *replicas)


def recreate(environment: Environment, service: str) -> list[str]:
    """Start one service again with its present configuration, and wait until it is healthy."""
    return compose(environment, "up", "--detach", "--force-recreate", "--no-deps", *_WAIT, service)


def stop(containers: Sequence[str], grace_s: str) -> list[str]:
    """Stop containers, all at the same time. One that takes longer than the grace period is killed."""
    return ["docker", "stop", "-t", grace_s, *containers]


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
    """Print the ids of all things of one of the ``KINDS`` that the engine has of a project."""
    every = ["--all"] if kind == "container" else []
    return ["docker", kind, "ls", *every, "--quiet", "--filter", f"label=com.docker.compose.project={project}"]


def remove_all(kind: str, ids: Sequence[str]) -> list[str]:
    """Remove things of one of the ``KINDS``, running containers too. Their volumes without a name go with them."""
    return ["docker", kind, "rm", *(["--force", "--volumes"] if kind == "container" else []), *ids]


def engine_events(project: str, since: float) -> list[str]:
    """Print the engine's events of a project's containers as lines of JSON, without the runs of health checks."""
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


def app(environment: Environment, service: str, queues: str, arguments: Sequence[str], *, terminal: bool) -> list[str]:
    """Run a command of the app in a container of workers that is up, for these queues."""
    command = ["aegis-worker", *arguments]
    return run_in(environment, service, command, terminal=terminal, WORKER_QUEUES=queues)


def redis_cli(environment: Environment, arguments: Sequence[str], *, terminal: bool) -> list[str]:
    """``redis-cli`` as ``admin``, in the environment's database: one command or, without arguments, a session."""
    database = environment.values["REDIS_DB"]
    script = _REDIS_CLI if arguments else _REDIS_CLI_SESSION
    return run_in(
        environment, "redis", ["sh", "-c", script, "redis-cli", "-n", database, *arguments], terminal=terminal
    )


def redis_apart(
    environment: Environment, name: str, steps: Sequence[str], *, stdin: bool, **variables: str
) -> list[str]:
    """Run steps of redis/data.sh in a container with Redis's image and volume, which nobody can connect to."""
    scripts = [
        part for file in ("data.sh", "survey.lua") for part in ("--volume", f"{ROOT}/redis/{file}:/etc/redis/{file}:ro")
    ]
    given = [part for key, value in variables.items() for part in ("--env", f"{key}={value}")]
    options = ["--rm", "--no-deps", "-T", *([] if stdin else ["--interactive=false"]), "--name", name, *scripts, *given]
    return compose(environment, "run", *options, "redis", "sh", "/etc/redis/data.sh", *steps)


def check_worker(environment: Environment, service: str) -> list[str]:
    """Check the settings and the code of a service of workers, in a container beside those that run."""
    options = ["--rm", "--no-deps", "-T", "--interactive=false"]
    return compose(environment, "run", *options, service, "worker", "--check")


def set_passwords(environment: Environment, user: str, hashes: Sequence[str]) -> list[str]:
    """Have the running Redis accept these hashes of passwords and no others. Clients that are connected stay so."""
    rules = ["resetpass", *(f"#{value}" for value in hashes)]
    return redis_cli(environment, ["ACL", "SETUSER", user, *rules], terminal=False)


def replicas_variable(queue: str | None) -> tuple[str, str]:
    """Return the service of a queue, and the variable with its replicas. None stands for all queues."""
    if queue is None:
        return "worker", "WORKER_REPLICAS"
    return f"worker-{queue.replace('_', '-')}", f"WORKER_{queue.upper().replace('-', '_')}_REPLICAS"
