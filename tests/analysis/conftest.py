"""Settings of the tests of the studies."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _light_fonts(light_fonts: None) -> None:
    """The studies are drawn as `pysoftq compress` draws, which is tested with its fonts."""
