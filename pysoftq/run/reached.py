"""What a run with a target has reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pysoftq.compressor.rungs import Rung, asked_for
from pysoftq.compressor.target import Target


@dataclass(frozen=True)
class Reached:
    """A target, and the network that the run ends with.

    Attributes:
        target: as given; of a front, that of the network in the compressed file.
        rungs: networks on the way, with sizes as predicted from the counts of clusters; the drop of
            each is that on the validation data.
        chosen: the number of the one that is in the compressed file.
        bytes_on_disk: of the compressed file.
        h: strength of the coupling.
        lost: what a drop is counted in.
        shortfalls: why the target is not met; empty where it is.
        advice: what would be possible then.
        ratio: of the force to the gradient of the loss, root mean squares over all coupled weights
            at the first step; None if nothing was coupled, or in reports of earlier versions.
        coding: of the indices, whose bits are meant.
    """

    target: Target
    rungs: tuple[Rung, ...]
    chosen: int
    bytes_on_disk: int
    h: float
    lost: str
    shortfalls: tuple[str, ...] = ()
    advice: str = ""
    ratio: float | None = None
    coding: str = "entropy"

    @property
    def met(self) -> bool:
        """Whether the run has reached its target."""
        return not self.shortfalls

    @property
    def easier(self) -> str:
        """How to ask for a network that loses less."""
        if self.of_front:
            return "pick a larger network of the front"
        return self.target.easier

    @property
    def of_front(self) -> bool:
        """Whether there are several networks, each with its own target."""
        return not self.target.searched and len(asked_for(self.rungs)) > 1

    @property
    def rung(self) -> Rung:
        """The network in the compressed file."""
        return self.rungs[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "met": self.met}

    def lines(self, test_degradation: float) -> list[str]:
        """Target, size, and losses on validation and test data."""
        rung = self.rung
        drop = "" if rung.drop is None else f"{rung.drop:.2f} on validation data, "
        size = f"{self.bytes_on_disk:,} bytes on disk ({rung.bytes:,} predicted)"
        if self.target.searched:
            size = f"network {self.chosen + 1} of {len(asked_for(self.rungs))}, {size}"
        force = f" (force {self.ratio:.3g} times the gradient)" if self.ratio else ""
        bits = f"{rung.bits:.3f} bits per weight ({self.coding})"
        requested = f"target: {', '.join(self._wanted())}"
        if self.of_front:
            requested = f"front: {len(asked_for(self.rungs))} target sizes"
        return [
            f"{requested}: {'met' if self.met else 'NOT met'}",
            f"reached: {size}, {bits}, h {self.h:g}{force}",
            f"lost: {drop}{test_degradation:.2f} on test data, in {self.lost}",
        ]

    def _wanted(self) -> Iterator[str]:
        target = self.target
        if target.bytes is not None:
            yield f"at most {target.bytes:,} bytes"
        if target.bits is not None:
            yield f"at most {target.bits:g} bits per weight"
        if target.max_drop is not None:
            yield f"at most {target.max_drop:g} {self.lost} lost on validation data"
