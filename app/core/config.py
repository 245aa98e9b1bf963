"""The settings of this project: those of the library, and the team's own fields.

`docs/configuration.md` lists all of them. Set them in ``env/<ENV>.env``. A secret is a file.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

import aegis_worker
from aegis_worker.settings import checkout

ROOT = Path(__file__).resolve().parents[2]


class Settings(aegis_worker.Settings):
    """Add fields here. Each one is read from the variable of the same name, and checked when the worker starts."""

    model_config = checkout(ROOT)

    WORKER_CHECK_URL_PRIVATE: bool = Field(
        False, description="the task `check_url` may reach hosts that are not public, also those that producers cannot"
    )
    WORKER_DATA_DIR: Path = Field(ROOT / ".local" / "data", description="folder in which tasks read and write files")


settings = Settings()
