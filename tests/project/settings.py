"""The settings of the tests' project: the library's, and a field of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import Field

import aegis_worker
from aegis_worker.settings import checkout

ROOT = Path(__file__).resolve().parent  #: it has an ``env/``, and gets a ``secrets/`` where a test copies it


class Settings(aegis_worker.Settings):
    model_config = checkout(ROOT)

    WORKER_DATA_DIR: Path = Field(Path(tempfile.gettempdir()), description="folder that tasks write files in")


settings = Settings()
