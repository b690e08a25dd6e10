"""Refusals on devices that a step does not wait for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pysoftq.interaction.pieces import Extremes
from pysoftq.interaction.segment_table import SegmentTable


class DeferredRefusals:
    """The part of `PieceCoupling` about refusals, which `check` reports later.

    To be inherited by couplings that keep their units in ``_table``.
    """

    _table: SegmentTable

    def refuses(self, extremes: Extremes) -> bool:  # noqa: ARG002 - the device is not waited for
        """Return False: `check` reports steps that were refused."""
        return False

    def unfit(
        self,
        thetas: Sequence[Tensor],  # noqa: ARG002
        gradients: Sequence[Tensor | None],  # noqa: ARG002
    ) -> list[tuple[int, int, str]]:
        """Return nothing, as nothing is refused at once."""
        return []

    def explain(self, extremes: Extremes, unfit: Iterable[tuple[int, int, str]]) -> str:
        """The layers that are refused and the reasons, given what is unfit in all processes."""
        return self._table.explain(self._table.reasons(extremes, unfit))
