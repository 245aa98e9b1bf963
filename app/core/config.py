"""The settings of this project: the library's, and the team's own fields.

`docs/configuration.md` lists all of them. An environment sets them in ``env/<ENV>.env``, a secret is a file.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

import aegis_worker
from aegis_worker.settings import checkout

ROOT = Path(__file__).resolve().parents[2]


class Settings(aegis_worker.Settings):
    """Add fields here. Each is read from the variable of its name, and checked when the worker starts."""

    model_config = checkout(ROOT)

    WORKER_CHECK_URL_PRIVATE: bool = Field(
        False, description="the task `check_url` may ask hosts that are not public, which producers may not reach"
    )
    WORKER_DATA_DIR: Path = Field(ROOT / ".local" / "data", description="folder that tasks read and write files in")


settings = Settings()
