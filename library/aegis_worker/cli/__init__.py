"""The command line, ``my-app`` and ``aegis-worker``. It needs only Redis.

Each module of this package is a command or a group of commands. It is imported when it is used. So ``worker``, which
runs as long as its container, does not load the others.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from aegis_worker.cli.errors import Failure, explain_settings
from aegis_worker.text import visible

COMMANDS = ("worker", "health", "queue", "job", "dead", "task", "load-test")


class Commands(typer.core.TyperGroup):
    """Finds a command in the module of the same name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return typer.main.get_command(import_module(f"{__name__}.{cmd_name.replace('-', '_')}").app)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """Background work: workers, queues, jobs.

    Exit code 0: done.
    Exit code 1: the answer is no, or a job failed.
    Exit code 2: something has to be fixed first. One line says what.
    Exit code 130: Ctrl-C.
    """


def main() -> None:
    """Run one command and exit with its code; what has to be fixed is printed in one line, without a traceback."""
    sys.set_int_max_str_digits(0)  # ints in a payload are limited by its size, and a command has to print them
    try:
        app()
    except Failure as failure:
        print(visible(str(failure)), file=sys.stderr)
        sys.exit(failure.exit_code)
    except (ValidationError, SettingsError) as error:
        print(visible("\n".join(explain_settings(error))), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
