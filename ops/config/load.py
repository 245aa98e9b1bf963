"""Reading an environment: every problem is found before anything is done."""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from . import ROOT, OpsError, envfile
from .environment import Environment, is_name, names
from .rules import RULES

SECRETS = ("REDIS_PASSWORD", "WORKER_SIGNING_KEY")  #: variables whose values are files in secrets/
_ALIKE = 0.9  #: two names that are as alike as this are one name and its typing error


def load(name: str, *, root: Path = ROOT, shell: Mapping[str, str] = os.environ) -> Environment:
    """Read and check an environment. Raises ``OpsError`` with every problem that was found."""
    if not is_name(name):
        raise OpsError(f"ENV={name}: an environment's name has lower-case letters, digits and -, and is not base")
    if name not in (there := names(root)):
        raise OpsError(f"ENV={name}: there is no env/{name}.env; there are: {', '.join(there)}")
    local = root / "env" / f"{name}.local.env"
    files = (root / "env" / "base.env", root / "env" / f"{name}.env", *([local] if local.exists() else []))
    values: dict[str, str] = {}
    documented: frozenset[str] = frozenset()
    problems: list[str] = []
    for file in files:
        where = str(file.relative_to(root))
        found, wrong = _read(file, where)
        problems += wrong
        if file is files[0]:
            documented = frozenset(found)
        else:
            problems += _misspelt(found, documented, where)
        values |= found
        held = [secret for secret in SECRETS if secret in found]
        problems += [f"{where}: {secret} does not go into env files: see secrets/{name}/" for secret in held]
    values |= {variable: shell[variable] for variable in values if variable in shell and variable != "ENV"}
    environment = Environment(name, files, values, root)
    problems += [problem for rule in RULES for problem in rule(environment)]
    if problems:
        raise OpsError("\n".join(problems))
    return environment


def _read(file: Path, name: str) -> tuple[dict[str, str], list[str]]:
    """Return what a file says, and what is wrong with it. ``name`` is the file's name in messages."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        return {}, [f"{name}:{number}: not UTF-8: save the file as UTF-8"]
    except OSError as error:
        return {}, [f"{name}: cannot be read: {error.strerror}"]
    values, wrong = envfile.parse(text)
    return values, [f"{name}:{number}: {what}" for number, what in wrong]


def _misspelt(values: Iterable[str], documented: Iterable[str], name: str) -> list[str]:
    """Return a line for each variable that looks like one of ours, misspelt. Others are a team's own."""
    known = {*documented, "ENV", "COMPOSE_PROJECT_NAME", "COMPOSE_FILE"}
    close = {variable: get_close_matches(variable, known, 1, _ALIKE) for variable in values if variable not in known}
    own = "A variable of your own is written there, too"
    return [f"{name}: {it} is not in env/base.env: did you mean {ours[0]}? {own}" for it, ours in close.items() if ours]
