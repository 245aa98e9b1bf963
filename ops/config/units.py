"""Amounts of memory and lengths of time, as they are written and as they are shown."""

import re

MIB, GIB = 1024**2, 1024**3
DAY_S = 24 * 3600

_BYTES = {"": 1, "k": 1024, "m": MIB, "g": GIB}
_SECONDS = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": DAY_S}


def size(text: str) -> int | None:
    """Return the bytes of an amount such as ``512M`` or ``256mb``. Any other text gives None."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)b?", text.strip().lower())
    return int(match[1]) * _BYTES[match[2]] if match else None


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def seconds(text: str) -> float:
    """Return how long ``1m30s``, ``500ms`` or ``7d`` is."""
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhd])", text))
