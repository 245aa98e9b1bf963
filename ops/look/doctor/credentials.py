"""Checks of the secrets: their folder, their files, their certificates. No secret is printed."""

import os
import ssl
import stat
import time

from ...secrets.certificates import CA, CLIENT, RENEW_DAYS, SERVER, SERVER_NAMES
from ...secrets.passwords import ACL, SIGNING_KEY, USERS, hash_of
from .facts import Facts, hashes
from .finding import Finding, fail, ok, warn


def folder(facts: Facts) -> Finding:
    path, mode = facts.secrets, stat.S_IMODE(facts.secrets.stat().st_mode)
    fact, owner = f"secrets/{facts.name}/ {mode:04o}", path.stat().st_uid
    if mode & 0o077:
        return fail(f"{fact}: others on this host can enter it", f"chmod 700 secrets/{facts.name}")
    if owner != os.geteuid():
        return warn(f"{fact}, of user {owner}; you are {os.geteuid()}", f"sudo chown -R $USER secrets/{facts.name}")
    return ok(fact)


def files(facts: Facts) -> Finding:
    """Each file is there, is not empty, and only its owner can write it."""
    path, needed = facts.secrets, [*USERS.values(), ACL, SIGNING_KEY]
    make = f"make secrets ENV={facts.name}"
    if facts.environment.tls:
        needed += [
            f"{name}.{end}" for name in (CA, SERVER, CLIENT) for end in ("crt", "key") if (name, end) != (CA, "key")
        ]
    if missing := [name for name in needed if not (path / name).is_file()]:
        return fail(f"missing: {', '.join(missing)}", make)
    if empty := [name for name in needed if name != SIGNING_KEY and not (path / name).stat().st_size]:
        return fail(f"empty: {', '.join(empty)}", f"rm them in secrets/{facts.name}/; {make} up")
    modes = {file: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    if writable := [file.name for file, mode in modes.items() if mode & 0o022]:
        return fail(f"others can write {', '.join(writable)}", f"chmod go-w secrets/{facts.name}/*")
    if modes.get(path / f"{CA}.key", 0) & 0o077:
        return fail(f"others can read {CA}.key", f"chmod 400 secrets/{facts.name}/{CA}.key")
    return ok(f"{len(needed)} are there, and closed to others")


def access_list(facts: Facts) -> Finding | None:
    path = facts.secrets
    if not all((path / name).is_file() for name in (ACL, *USERS.values())):
        return None  # `files` says what is missing
    known = hashes((path / ACL).read_text())
    passwords = {user: hash_of((path / name).read_text().strip()) for user, name in USERS.items()}
    if stale := [user for user, value in passwords.items() if value not in known.get(user, ())]:
        return fail(f"{ACL} has another password of {', '.join(stale)}", f"make secrets restart ENV={facts.name}")
    return ok(f"{ACL} has the passwords of {', '.join(USERS)}")


def certificate_expiry(facts: Facts) -> Finding:
    now = time.time()
    days = {f"{name}.crt": each.days_left(now) for name, each in facts.certificates.items()}
    fact = ", ".join(f"{name} {left} days" for name, left in days.items())
    fix = f"make certs ENV={facts.name}"
    if min(days.values()) < 0:
        return fail(f"expired: {fact}", fix)
    return ok(fact) if min(days.values()) >= RENEW_DAYS else warn(f"expires soon: {fact}", fix)


def certificate_names(facts: Facts) -> Finding:
    ca, server, client = (facts.certificates[name] for name in (CA, SERVER, CLIENT))
    fix = f"make certs ENV={facts.name}"
    if others := [name for name, each in ((SERVER, server), (CLIENT, client)) if each.issuer != ca.subject]:
        return fail(f"not signed by {ca.subject}: {', '.join(others)}", fix)
    if missing := {*SERVER_NAMES, *facts.environment.listed("REDIS_TLS_NAMES")} - {*server.names}:
        return fail(f"{SERVER}.crt is not for {', '.join(sorted(missing))}", fix)
    return ok(f"{', '.join(server.names)}; signed by {ca.subject}")


def certificate_keys(facts: Facts) -> Finding | None:
    if not facts.environment.tls:
        return None
    path = facts.secrets
    for name in (SERVER, CLIENT):
        try:
            ssl.create_default_context().load_cert_chain(path / f"{name}.crt", path / f"{name}.key")
        except (ssl.SSLError, OSError) as error:
            fix = f"make certs ARGS='--renew {name.removeprefix('redis_')}' ENV={facts.name}"
            return fail(f"{name}.key is not the key of {name}.crt ({error})", fix)
    return ok("each key belongs to its certificate")


CHECKS = (folder, files, access_list, certificate_expiry, certificate_names, certificate_keys)
