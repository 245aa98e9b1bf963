"""What `make` calls: it reads the environment, says what it does, runs it, and ends with its exit code."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from . import certificates, commands, configuration, images, local, secrets
from .configuration import ROOT, ConfigurationError, Environment

ACL_TEMPLATE = ROOT / "redis" / "users.acl.template"

#: One at a time; of two that run at once, Compose may make two networks of one name, and certificates of two CAs.
ALONE = ("up", "build", "scale", "secrets-rotate", "certs")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 2 where something has to be mended first, which one line names."""
    options = _parser().parse_args(argv)
    try:
        environment = configuration.load(options.env)
        if options.command not in ("secrets", "local"):
            _need_engine()
        with _alone(environment) if options.command in ALONE else nullcontext():
            code: int = options.run(environment, options)
    except (ConfigurationError, images.ImageError) as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m ops", description="Operations on the stack of one environment.")
    parser.add_argument("--env", default=os.environ.get("ENV", "dev"), help="name of the environment (dev)")
    sub = parser.add_subparsers(dest="command", required=True)
    sub.add_parser("up", help="build, start, wait until healthy").set_defaults(run=up)
    sub.add_parser("build", help="build the images").set_defaults(run=build)
    sub.add_parser("secrets", help="make the secrets that are missing").set_defaults(run=make_secrets)
    rotation = sub.add_parser("secrets-rotate", help="change passwords of Redis while everything runs")
    rotation.add_argument("--user", choices=secrets.USERS, help="this user's alone; all by default")
    rotation.add_argument("--finish", action="store_true", help="end the validity of the producers' last password")
    rotation.set_defaults(run=rotate)
    certifying = sub.add_parser("certs", help="make the certificates that are missing, renew and list them")
    certifying.add_argument("--renew", choices=("ca", "server", "client"), help="before its time; ca: all")
    certifying.set_defaults(run=certs)
    sub.add_parser("local", help="serve without Docker, in the foreground").set_defaults(run=serve_local)
    scaling = sub.add_parser("scale", help="set the number of replicas, for good")
    scaling.add_argument("replicas", metavar="N")
    scaling.add_argument("--queue", help="scale the service of one queue (layer compose/queues.yml)")
    scaling.set_defaults(run=scale)
    for name, run, text in (
        ("app", app, "run a command of the app in a worker's container"),
        ("redis-cli", redis_cli, "run redis-cli, logged in"),
        ("compose", compose, "run docker compose with the environment's files"),
    ):
        # With no character that begins an option, all arguments are the other program's.
        wrapper = sub.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        wrapper.add_argument("arguments", nargs=argparse.REMAINDER)
        wrapper.set_defaults(run=run)
    return parser


def up(environment: Environment, _: argparse.Namespace) -> int:
    _passwords(environment)
    if _certificates(environment):
        _reload_certificates(environment)
    _base_images(environment)
    code = _run(commands.up(environment))
    if code:
        say(f"not all of it became healthy: `make logs ENV={environment.name}` shows why")
        return code
    return _run(commands.compose(environment, "ps"))


def build(environment: Environment, _: argparse.Namespace) -> int:
    _base_images(environment)
    return _run(commands.compose(environment, "build"))


def make_secrets(environment: Environment, _: argparse.Namespace) -> int:
    _passwords(environment)
    _certificates(environment)
    return 0


def certs(environment: Environment, options: argparse.Namespace) -> int:
    if not environment.tls:
        raise ConfigurationError(
            f"ENV={environment.name} has no TLS: add compose/tls.yml to COMPOSE_FILE in env/{environment.name}.env, "
            "and REDIS_SSL=true"
        )
    _passwords(environment)
    _certificates(environment, renew=options.renew and f"redis_{options.renew}")
    _reload_certificates(environment)
    print(certificates.table(environment.secrets, _openssl(environment), now=time.time()))
    return 0


def rotate(environment: Environment, options: argparse.Namespace) -> int:
    """At each step Redis takes the password that is in the file, so that it may be cut short anywhere."""
    _passwords(environment)
    folder, name = environment.secrets, environment.name
    running = "redis" in _output(commands.compose(environment, "ps", "--services"))

    def tell_redis(user: str, *more: str) -> None:
        if running and _fails(commands.set_passwords(environment, user, [*secrets.hashes(folder, user), *more])):
            raise ConfigurationError(f"Redis did not take the password: `make logs ARGS=redis ENV={name}`")

    for user in [options.user] if options.user else secrets.USERS:
        if not options.finish:
            password = secrets.new_password()
            tell_redis(user, secrets.hash_of(password))
            secrets.replace(folder, ACL_TEMPLATE, user, password)
        if options.finish or user != "producer":
            secrets.retire(folder, ACL_TEMPLATE, user)
        tell_redis(user)
        say(f"{user}: {'the last password is void' if options.finish else 'a new password is valid'}")
    if options.user in (None, "producer") and not options.finish:
        say(
            f"producers: give them secrets/{name}/{secrets.USERS['producer']}; the last one stays valid until "
            f"`make secrets-rotate USER=producer ARGS=--finish ENV={name}`"
        )
    return 0


def serve_local(environment: Environment, _: argparse.Namespace) -> int:
    _passwords(environment)
    return local.run(environment)


def scale(environment: Environment, options: argparse.Namespace) -> int:
    service, variable = commands.replicas_variable(options.queue)
    if not options.replicas.isdigit():
        raise ConfigurationError(f"N={options.replicas}: a number of replicas is 0 or more, as in `make scale N=3`")
    services = _services(environment)
    if service not in services:
        there = ", ".join(sorted(name for name in services if name.startswith("worker")))
        hint = " (a queue has a service of its own with compose/queues.yml in COMPOSE_FILE)" if options.queue else ""
        raise ConfigurationError(f"there is no service {service} in ENV={environment.name}, but: {there}{hint}")
    configuration.write(environment.local_file, variable, options.replicas)
    say(f"{variable}={options.replicas} is written to {environment.local_file.relative_to(ROOT)}")
    if not _output(commands.compose(environment, "ps", "--quiet")):
        say(f"the stack is down: `make up ENV={environment.name}` starts as many")
        return 0
    os.environ.pop(variable, None)
    return _run(commands.scale(configuration.load(environment.name), service))


def app(environment: Environment, options: argparse.Namespace) -> int:
    workers = [name for name in _services(environment) if name.startswith("worker")]
    running = [name for name in _output(commands.compose(environment, "ps", "--services")) if name in workers]
    if not running:
        raise ConfigurationError(f"no worker is up in ENV={environment.name}: `make up ENV={environment.name}`")
    split = [name.removeprefix("worker-").replace("-", "_") for name in workers if name != "worker"]
    queues = ",".join(split) or environment.values["WORKER_QUEUES"]
    command = ["aegis-worker", *options.arguments]
    return _run(commands.run_in(environment, running[0], command, terminal=sys.stdin.isatty(), WORKER_QUEUES=queues))


def redis_cli(environment: Environment, options: argparse.Namespace) -> int:
    return _run(commands.redis_cli(environment, options.arguments, terminal=sys.stdin.isatty()))


def compose(environment: Environment, options: argparse.Namespace) -> int:
    return _run(commands.compose(environment, *options.arguments))


@contextmanager
def _alone(environment: Environment) -> Iterator[None]:
    """Wait until nobody else changes the environment's stack. The kernel ends the lock with the process."""
    folder = ROOT / ".local"
    folder.mkdir(exist_ok=True)
    with (folder / f"{environment.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"somebody else changes ENV={environment.name}: waiting for them to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _passwords(environment: Environment) -> None:
    for line in secrets.close(environment.secrets):
        say(line)
    if secrets.ensure(environment.secrets, ACL_TEMPLATE):
        say(f"secrets: made in {environment.secrets.relative_to(ROOT)}/")


def _certificates(environment: Environment, renew: str | None = None) -> bool:
    """Make what is missing, and renew what expires soon, of an environment with TLS; return whether any was."""
    if not environment.tls:
        return False
    folder, project = environment.secrets, environment.values["COMPOSE_PROJECT_NAME"]
    names, openssl = environment.redis_names, _openssl(environment)
    made = certificates.ensure(folder, project, names, openssl, now=time.time(), renew=renew)
    if made:
        say(f"certificates: {', '.join(made)} made in {folder.relative_to(ROOT)}/")
    return bool(made)


def _openssl(environment: Environment) -> certificates.OpenSSL:
    if certificates.on_host():
        return certificates.command(environment.secrets, None)
    _need_engine()
    image = environment.values["PYTHON_IMAGE"]
    images.ensure(image, say=say)
    return certificates.command(environment.secrets, image)


def _reload_certificates(environment: Environment) -> None:
    """Have a Redis that is up take its certificates as they are now: at once, or else by a restart of the stack."""
    if "redis" not in _output(commands.compose(environment, "ps", "--services")):
        return
    inside = _ask(commands.print_certificates(environment))
    if inside.returncode:
        return  # it is still without TLS
    # A file that was deleted and made anew is not the one that the container has.
    here = "".join((environment.secrets / f"{name}.crt").read_text() for name in certificates.NAMES)
    if inside.stdout == here and _ask(commands.reload_certificates(environment)).stdout.strip() == "OK":
        return
    say("Redis cannot take its certificates while it runs: restarting the stack")
    _run(commands.compose(environment, "restart"))


def _base_images(environment: Environment) -> None:
    for variable in ("PYTHON_IMAGE", "REDIS_IMAGE"):
        images.ensure(environment.values[variable], say=say)


def _services(environment: Environment) -> list[str]:
    return _output(commands.compose(environment, "config", "--services"))


def _need_engine() -> None:
    if shutil.which("docker") is None:
        raise ConfigurationError("Docker is not installed here: `make engine` installs and starts it")
    if _fails(["docker", "compose", "version"]):
        raise ConfigurationError("Docker has no Compose here: `make engine` installs it")
    if _fails(["docker", "version", "--format", "{{.Server.Version}}"]):
        raise ConfigurationError("no Docker engine answers: `make engine` starts it")


def _fails(argv: list[str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode != 0


def _ask(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def _output(argv: list[str]) -> list[str]:
    done = _ask(argv)
    if done.returncode:
        raise ConfigurationError(done.stderr.strip())
    return done.stdout.split()


def _run(argv: list[str]) -> int:
    return subprocess.run(argv, cwd=ROOT, check=False).returncode
