"""``python -m app`` is ``my-app``."""

from app.cli import main

main()
