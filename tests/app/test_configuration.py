"""The page of variables, which shows the team's own beside the others."""

from __future__ import annotations

from docs import generate
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == generate.page(), "type `make docs`"
