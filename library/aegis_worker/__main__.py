"""``python -m aegis_worker`` is ``aegis-worker``."""

from aegis_worker.cli import main

main()
