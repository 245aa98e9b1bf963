"""``python -m aegis_worker`` runs the command line ``aegis-worker``."""

from __future__ import annotations

import sys

from aegis_worker import extra


def main() -> None:
    """Run one command, as ``aegis_worker.cli.main`` does. If the extra ``project`` is missing, print one line."""
    try:
        from aegis_worker.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if explained := extra.explain(error, "The command line"):
            print(explained, file=sys.stderr)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
