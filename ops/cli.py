"""What `make` calls: it reads the environment, runs one command, and ends with its exit code."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from . import local
from .config import OpsError
from .config.load import load
from .data import backup, restore, upgrade
from .engine import services
from .engine.stack import Rehearsal, Stack
from .engine.terminal import say
from .look import diag, doctor, events
from .release import autoscale, bundle, deploy, lifecycle, supply, versions
from .secrets import credentials, passwords

Command = Callable[[Stack, argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. It is 2 if something has to be fixed first, and one line says what."""
    options = _parser().parse_args(argv)
    if options.command == "doctor":
        return doctor.run(options)  # it runs even if others cannot, and says why they cannot
    try:
        stack = (Rehearsal if options.dry_run else Stack)(load(options.env))
        if options.engine:
            stack.need_engine()
            if options.alone:
                stack.must_be_ours()
        with stack.alone(options.command) if options.alone else nullcontext():
            code: int = options.run(stack, options)
        sys.stdout.flush()
    except OpsError as error:
        say(str(error))
        return 2
    except BrokenPipeError:  # the reader has ended, as in `make events | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        say(f"{error.filename or 'a file'}: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m ops", description="Operations on the stack of one environment.")
    parser.add_argument("--env", default=os.environ.get("ENV", "dev"), help="name of the environment (dev)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and change nothing")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Command, text: str, *, alone: bool = True, engine: bool = True) -> argparse.ArgumentParser:
        """Add a command.

        :param alone: it changes the stack, so it waits for other changes
        :param engine: it needs Docker
        """
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run, alone=alone, engine=engine)
        return command

    add("up", lifecycle.up, "build, start, wait until healthy")
    add("down", lifecycle.down, "stop and remove the containers")
    destroying = add("destroy", lifecycle.destroy, "remove containers, networks, and volumes with their data")
    destroying.add_argument("--confirm", metavar="ENV", help="the environment's name, if there is nobody to ask")
    add("restart", lifecycle.restart, "restart the containers")
    add("build", lifecycle.build, "build the images")

    scaling = add("scale", lifecycle.scale, "set the number of replicas, for good")
    scaling.add_argument("replicas", metavar="N")
    scaling.add_argument("--queue", help="scale the service of one queue (layer compose/queues.yml)")
    scaling.add_argument("--force", action="store_true", help="even if the machine lacks the memory for them")

    autoscaling = add(
        "autoscale", autoscale.autoscale, "scale by what waits in the queues, in the foreground", alone=False
    )
    autoscaling.add_argument("minimum", metavar="MIN", type=int)
    autoscaling.add_argument("maximum", metavar="MAX", type=int)
    autoscaling.add_argument("--queue", help="the service of one queue (layer compose/queues.yml)")
    autoscaling.add_argument("--target", type=float, default=5, help="seconds that the oldest job may wait (5)")
    autoscaling.add_argument("--every", type=float, default=10, help="seconds between two polls (10)")
    autoscaling.add_argument("--steady", type=float, default=180, help="seconds of less load before replicas go (180)")
    autoscaling.add_argument(
        "--force", action="store_true", help="even if the machine lacks the memory for MAX replicas"
    )

    deploying = add("deploy", deploy.deploy, "replace the workers by a version of their own, without a pause")
    deploying.add_argument("--version", help="the image's tag; by default the checkout's commit, built")
    rollback = add("rollback", deploy.rollback, "replace the workers by an earlier version")
    rollback.add_argument("--version", help="the one before the present one by default")
    add("releases", versions.table, "list the versions that were deployed", alone=False)
    add("deploy-redis", deploy.deploy_redis, "save, and start Redis again with its present configuration")
    happened = add("events", events.show, "list what happened, in order", alone=False)
    happened.add_argument("--since", default="1d", help="how far back: 30m, 2h, 7d (1d)")
    happened.add_argument("--follow", action="store_true", help="go on with what happens from now on")
    happened.add_argument("--json", action="store_true", help="a line of JSON for each")
    add("diag", diag.write, "write a redacted archive for a bug report", alone=False, engine=False)
    bundling = add("bundle", bundle.write, "write everything for a host without a network into one file")
    bundling.add_argument("--file", help="by default .local/aegis-worker-<ENV>-<version>.bundle.tar")
    loading = add("load", bundle.load, "bring in what a bundle has")
    loading.add_argument("file", metavar="FILE")
    backing_up = add("backup", backup.backup, "write what Redis holds, and what belongs to it, into an archive")
    backing_up.add_argument("--keep", default=str(backup.KEEP), help="how many of the environment's stay")
    restoring = add("restore", restore.restore, "replace what Redis holds by a backup")
    restoring.add_argument("file")
    restoring.add_argument("--yes", action="store_true", help="even if the stack is up, which is stopped for it")
    restoring.add_argument("--identity", default="", help="file with the key of an archive encrypted with age")
    upgrading = add("upgrade-redis", upgrade.upgrade, "run Redis on another image, which may be another server")
    upgrading.add_argument("image")
    add("unlock", deploy.unlock, "break the lock of a change that hangs", alone=False, engine=False)

    add("secrets", credentials.make, "make the secrets that are missing", engine=False)
    rotation = add("secrets-rotate", credentials.rotate, "change passwords of Redis while everything runs")
    rotation.add_argument("--user", choices=passwords.USERS, help="this user's alone; all by default")
    rotation.add_argument("--finish", action="store_true", help="make the producers' previous password invalid")
    certifying = add("certs", credentials.certs, "make the certificates that are missing, renew and list them")
    certifying.add_argument("--renew", choices=("ca", "server", "client"), help="before its time; ca: all")

    contents = add("sbom", supply.sbom, "print the bill of materials of the workers' image", alone=False)
    contents.add_argument("--queue", help="of the service of one queue (layer compose/queues.yml)")
    add("digests", supply.digests, "write down the images by their digests")
    examination = commands.add_parser("doctor", help="check the host, the configuration and what runs")
    examination.add_argument("--json", action="store_true", help="a list of what each check found, as data")

    add("local", local.serve, "serve without Docker, in the foreground", alone=False, engine=False)
    for name, run, text in (
        ("app", services.app, "run a command of the app in a worker's container"),
        ("redis-cli", services.redis_cli, "run redis-cli, logged in"),
        ("compose", services.compose, "run docker compose with the environment's files"),
    ):
        # No character begins an option, so all arguments go to the other program.
        wrapper = commands.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        wrapper.add_argument("arguments", nargs=argparse.REMAINDER)
        wrapper.set_defaults(run=run, alone=False, engine=True)
    return parser
