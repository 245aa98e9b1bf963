"""An environment: the env files that make it, and what they say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import ROOT

TLS = "compose/tls.yml"
_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Environment:
    """One environment: its name, the files that make it, and their values. Variables of the shell win over files."""

    name: str
    files: tuple[Path, ...]
    values: Mapping[str, str]
    root: Path = ROOT

    @property
    def local_file(self) -> Path:
        """The file with what this machine changes of the environment. It may not exist yet."""
        return self.files[0].with_name(f"{self.name}.local.env")

    @property
    def secrets(self) -> Path:
        return self.root / "secrets" / self.name

    @property
    def layers(self) -> list[str]:
        return [layer for layer in self.get("COMPOSE_FILE").split(":") if layer]

    @property
    def tls(self) -> bool:
        """Whether Redis speaks TLS, with certificates of our own."""
        return TLS in self.layers

    def get(self, variable: str) -> str:
        """Return a value, or an empty text: it is not known yet whether the files have all that they need."""
        return self.values.get(variable, "")

    def listed(self, variable: str) -> list[str]:
        """Return the parts of a value with commas."""
        return [part.strip() for part in self.get(variable).split(",") if part.strip()]


def names(root: Path = ROOT) -> list[str]:
    """Return the environments that there are: each ``env/NAME.env`` is one."""
    found = (path.name.removesuffix(".env") for path in (root / "env").glob("*.env"))
    return sorted(name for name in found if is_name(name))


def is_name(text: str) -> bool:
    return text != "base" and _NAME.fullmatch(text) is not None
