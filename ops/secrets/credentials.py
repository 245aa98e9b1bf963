"""Passwords and certificates of a stack, made and changed while it runs."""

import argparse
import time
from functools import partial

from ..config import ROOT, OpsError
from ..engine import commands, images
from ..engine.stack import Stack
from ..engine.terminal import say
from . import certificates, passwords


def ensure(stack: Stack) -> None:
    """Make what is missing. A Redis that is up takes certificates that were renewed."""
    if ensure_passwords(stack) and stack.running():
        say(f"running containers keep the old ones until `make restart ENV={stack.name}`")
    if _certify(stack):
        _reload_certificates(stack)


def make(stack: Stack, _: argparse.Namespace) -> int:
    ensure_passwords(stack)
    _certify(stack)
    return 0


def ensure_passwords(stack: Stack) -> bool:
    """Make passwords and the list of users if they are missing. Return whether any was."""
    folder = stack.environment.secrets
    for line in stack.change("close secrets that others can read", partial(passwords.close, folder)) or ():
        say(line)
    made = stack.change("make missing secrets", partial(passwords.ensure, folder))
    if made:
        say(f"secrets: made in {folder.relative_to(ROOT)}/")
    return bool(made)


def certs(stack: Stack, options: argparse.Namespace) -> int:
    environment = stack.environment
    if not environment.tls:
        raise OpsError(
            f"ENV={stack.name} has no TLS: add compose/tls.yml to COMPOSE_FILE in env/{stack.name}.env, "
            "and REDIS_SSL=true"
        )
    ensure_passwords(stack)
    _certify(stack, options.renew)
    _reload_certificates(stack)
    print(certificates.table(environment.secrets, openssl(stack), now=time.time()))
    return 0


def rotate(stack: Stack, options: argparse.Namespace) -> int:
    """Change passwords. At each step Redis accepts the password in the file, so the steps can end anywhere."""
    ensure_passwords(stack)
    folder = stack.environment.secrets
    running = "redis" in stack.running()

    def tell_redis(user: str, *more: str) -> None:
        argv = commands.set_passwords(stack.environment, user, [*passwords.hashes(folder, user), *more])
        if running and stack.ask(argv).returncode:
            raise OpsError(f"Redis did not take the password: `make logs ARGS=redis ENV={stack.name}`")

    def change(user: str) -> None:
        if not options.finish:
            password = passwords.new_password()
            tell_redis(user, passwords.hash_of(password))
            passwords.replace(folder, user, password)
        if options.finish or user != "producer":
            passwords.retire(folder, user)
        tell_redis(user)
        say(f"{user}: {'the previous password is invalid' if options.finish else 'a new password is valid'}")

    for user in [options.user] if options.user else passwords.USERS:
        what = "make the previous password invalid" if options.finish else "change the password"
        stack.change(f"{what} of {user}", partial(change, user))
    if options.user in (None, "producer") and not options.finish:
        say(
            f"producers: give them secrets/{stack.name}/{passwords.USERS['producer']}; the previous one stays valid "
            f"until `make secrets-rotate USER=producer ARGS=--finish ENV={stack.name}`"
        )
    return 0


def openssl(stack: Stack) -> certificates.OpenSSL:
    """Return the openssl of the host or, if the host has none, of an image."""
    if certificates.on_host():
        return certificates.command(stack.environment.secrets, None)
    stack.need_engine()
    image = stack.environment.values["PYTHON_IMAGE"]
    images.ensure(image)
    return certificates.command(stack.environment.secrets, image)


def _certify(stack: Stack, renew: str | None = None) -> bool:
    """If the environment has TLS, make missing certificates and renew those that expire. Return whether any was."""
    if not stack.environment.tls:
        return False
    folder, names = stack.environment.secrets, stack.environment.listed("REDIS_TLS_NAMES")
    again = renew and f"redis_{renew}"
    made = stack.change(
        f"renew {renew}" if renew else "make certificates that are missing, renew those that expire",
        lambda: certificates.ensure(folder, stack.project, names, openssl(stack), now=time.time(), renew=again),
    )
    if made:
        say(f"certificates: {', '.join(made)} made in {folder.relative_to(ROOT)}/")
    return bool(made)


def _reload_certificates(stack: Stack) -> None:
    """Have a Redis that is up use its present certificates: at once if it can, else by a restart of the stack."""
    if "redis" not in stack.running():
        return
    inside = stack.ask(certificates.print_command(stack.environment))
    if inside.returncode:
        return  # it still runs without TLS
    # A file that was deleted and made again is not the file that the container has.
    here = "".join((stack.environment.secrets / f"{name}.crt").read_text() for name in certificates.NAMES)
    reload = certificates.reload_command(stack.environment)
    what = "have Redis read its certificates"
    if inside.stdout == here and stack.change(what, lambda: stack.ask(reload).stdout.strip() == "OK") is not False:
        return
    say("Redis cannot take its certificates while it runs: restarting the stack")
    stack.run(commands.compose(stack.environment, "restart"))
