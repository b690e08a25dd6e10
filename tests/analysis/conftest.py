"""Settings of the tests of the studies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pysoftq.analysis.figures import style


@pytest.fixture(scope="package", autouse=True)
def _light_fonts() -> Iterator[None]:
    """PDF files hold outlines in place of fonts, whose subsets take half of the time of a figure.

    The commands are tested elsewhere, and write their figures as they do for users.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style._SETTINGS, "pdf.fonttype", 3)
        yield
