"""The extra ``project``: what is said where something needs it and it is not installed."""

from __future__ import annotations

#: The modules of the packages in it. All else needs the library's own dependencies only.
MODULES = frozenset(
    {"dotenv", "pydantic", "pydantic_settings", "pythonjsonlogger", "rich", "typer", "uvloop", "watchfiles"}
)


def explain(error: ModuleNotFoundError, what: str) -> str | None:
    """Return a line that names the extra; None where the missing module is not of it.

    :param error: as the import raised it
    :param what: what cannot be used without the extra, the subject of the sentence
    """
    package = (error.name or "").partition(".")[0]
    if package not in MODULES:
        return None
    return (
        f"{what} cannot be used without the module {package}: "
        "install the library with its extra, as aegis-worker[project]"
    )
