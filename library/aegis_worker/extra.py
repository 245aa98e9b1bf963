"""Explains the import error if the extra ``project`` is needed and not installed."""

from __future__ import annotations

#: The modules of the packages in the extra. The rest of the library needs only its own dependencies.
MODULES = frozenset(
    {"dotenv", "pydantic", "pydantic_settings", "pythonjsonlogger", "rich", "typer", "uvloop", "watchfiles"}
)


def explain(error: ModuleNotFoundError, what: str) -> str | None:
    """Return a line that names the extra, or None if the missing module does not belong to it.

    :param error: the error that the import raised
    :param what: the subject of the sentence: the part that cannot be used without the extra
    """
    package = (error.name or "").partition(".")[0]
    if package not in MODULES:
        return None
    return (
        f"{what} cannot be used without the module {package}: "
        "install the library with its extra, as aegis-worker[project]"
    )
