"""Passwords and certificates of a stack, also of one that is up."""

from __future__ import annotations

import argparse
import time
from functools import partial

from . import certificates, commands, images, secrets
from .configuration import ROOT, ConfigurationError
from .stack import Stack, say

ACL_TEMPLATE = ROOT / "redis" / "users.acl.template"


def ensure(stack: Stack) -> None:
    """Make what is missing, and have a Redis that is up take up certificates that were renewed."""
    if passwords(stack) and stack.running():
        say(f"what runs has those of before until `make restart ENV={stack.name}`")
    if _certify(stack):
        _reload_certificates(stack)


def make(stack: Stack, _: argparse.Namespace) -> int:
    passwords(stack)
    _certify(stack)
    return 0


def passwords(stack: Stack) -> bool:
    """Make passwords and the list of users where they are missing; return whether any was."""
    folder = stack.environment.secrets
    for line in stack.change("close secrets that others can read", lambda: secrets.close(folder)) or ():
        say(line)
    made = stack.change("make missing secrets", lambda: secrets.ensure(folder, ACL_TEMPLATE))
    if made:
        say(f"secrets: made in {folder.relative_to(ROOT)}/")
    return bool(made)


def certs(stack: Stack, options: argparse.Namespace) -> int:
    environment = stack.environment
    if not environment.tls:
        raise ConfigurationError(
            f"ENV={stack.name} has no TLS: add compose/tls.yml to COMPOSE_FILE in env/{stack.name}.env, "
            "and REDIS_SSL=true"
        )
    passwords(stack)
    _certify(stack, options.renew)
    _reload_certificates(stack)
    print(certificates.table(environment.secrets, openssl(stack), now=time.time()))
    return 0


def rotate(stack: Stack, options: argparse.Namespace) -> int:
    """At each step Redis takes the password that is in the file, so that it may be cut short anywhere."""
    passwords(stack)
    folder = stack.environment.secrets
    running = "redis" in stack.running()

    def tell_redis(user: str, *more: str) -> None:
        argv = commands.set_passwords(stack.environment, user, [*secrets.hashes(folder, user), *more])
        if running and stack.ask(argv).returncode:
            raise ConfigurationError(f"Redis did not take the password: `make logs ARGS=redis ENV={stack.name}`")

    def change(user: str) -> None:
        if not options.finish:
            password = secrets.new_password()
            tell_redis(user, secrets.hash_of(password))
            secrets.replace(folder, ACL_TEMPLATE, user, password)
        if options.finish or user != "producer":
            secrets.retire(folder, ACL_TEMPLATE, user)
        tell_redis(user)
        say(f"{user}: {'the last password is void' if options.finish else 'a new password is valid'}")

    for user in [options.user] if options.user else secrets.USERS:
        what = "end the validity of the last password" if options.finish else "change the password"
        stack.change(f"{what} of {user}", partial(change, user))
    if options.user in (None, "producer") and not options.finish:
        say(
            f"producers: give them secrets/{stack.name}/{secrets.USERS['producer']}; the last one stays valid until "
            f"`make secrets-rotate USER=producer ARGS=--finish ENV={stack.name}`"
        )
    return 0


def openssl(stack: Stack) -> certificates.OpenSSL:
    """Return the host's openssl, or else an image's."""
    if certificates.on_host():
        return certificates.command(stack.environment.secrets, None)
    stack.need_engine()
    image = stack.environment.values["PYTHON_IMAGE"]
    images.ensure(image, say=say)
    return certificates.command(stack.environment.secrets, image)


def _certify(stack: Stack, renew: str | None = None) -> bool:
    """Make what is missing of an environment with TLS, and renew what expires soon; return whether any was."""
    if not stack.environment.tls:
        return False
    folder, names, again = stack.environment.secrets, stack.environment.redis_names, renew and f"redis_{renew}"
    made = stack.change(
        f"renew {renew}" if renew else "make certificates that are missing, renew those that expire",
        lambda: certificates.ensure(folder, stack.project, names, openssl(stack), now=time.time(), renew=again),
    )
    if made:
        say(f"certificates: {', '.join(made)} made in {folder.relative_to(ROOT)}/")
    return bool(made)


def _reload_certificates(stack: Stack) -> None:
    """Have a Redis that is up take its certificates as they are now: at once, or else by a restart of the stack."""
    if "redis" not in stack.running():
        return
    inside = stack.ask(commands.print_certificates(stack.environment))
    if inside.returncode:
        return  # it is still without TLS
    # A file that was deleted and made anew is not the one that the container has.
    here = "".join((stack.environment.secrets / f"{name}.crt").read_text() for name in certificates.NAMES)
    reload = commands.reload_certificates(stack.environment)
    if inside.stdout == here and (stack.dry_run or stack.ask(reload).stdout.strip() == "OK"):
        return
    say("Redis cannot take its certificates while it runs: restarting the stack")
    stack.run(commands.compose(stack.environment, "restart"))
