"""The options of a worker in a ``WorkerSettings`` class."""

from __future__ import annotations

import inspect
from typing import Any


def attributes(settings_class: type | dict[str, Any]) -> dict[str, Any]:
    """Return the public attributes of a class, also those that it inherits. A dict, which arq allows, is returned."""
    if isinstance(settings_class, dict):
        return settings_class
    found: dict[str, Any] = {}
    for cls in reversed(settings_class.__mro__[:-1]):
        found |= {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return found


def parameters(worker_class: type) -> set[str]:
    """Return the names of the arguments of a worker's class, also those that its ``__init__`` passes on."""
    names: set[str] = set()
    for cls in worker_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
        names |= {p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            break
    return names
