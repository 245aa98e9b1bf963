"""The arena of each scenario: servers, ports and a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.harness import Arena


@pytest.fixture
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Arena]:
    options: dict[str, str] = getattr(request, "param", {})
    async with Arena(request.node.name, tmp_path, **options) as arena:
        yield arena
