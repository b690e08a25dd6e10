"""What a compression has reached of its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pysoftq.compressor.meter import LEAST
from pysoftq.compressor.rungs import Rung, asked_for
from pysoftq.compressor.strength import Strength
from pysoftq.compressor.target import Target
from pysoftq.coupling.report import CompressionReport


@dataclass(frozen=True)
class TargetReport:
    """A compression at one moment of its training, or at the end.

    Attributes:
        targets: of the compression.
        phase: coupling, training or done.
        step: of the optimizer, so many are done.
        total_steps: of the whole training.
        rungs: those begun so far, with those on the way to a small target (``between``); sizes are
            predicted from the counts of the clusters.
        chosen: the number of the rung whose network the model is in the end.
        reference: the quality before compression, where `evaluate` was given.
        strength: of the coupling, and its ratio to the gradients of the first step.
        sensitivities: what a relative error in each layer costs, as measured before the present
            rung; empty if no gradients were there.
        layers: the table of coupled layers; None as long as they have no clusters.
        others: bytes of each tensor without clusters in the file, the largest first.
    """

    targets: tuple[Target, ...]
    phase: str
    step: int
    total_steps: int
    rungs: tuple[Rung, ...]
    chosen: int | None
    reference: float | None
    strength: Strength | None
    sensitivities: Mapping[str, float]
    layers: CompressionReport | None
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def rung(self) -> Rung | None:
        """The one that the model is now, or the last one; None while weights are coupled."""
        if not self.rungs:
            return None
        return self.rungs[-1 if self.chosen is None else self.chosen]

    @property
    def networks(self) -> tuple[Rung, ...]:
        """The rungs that were asked for, or searched."""
        return asked_for(self.rungs)

    @property
    def met(self) -> bool:
        """Whether all targets are met."""
        return not self.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why a target is not met, each with what is possible; empty before the end."""
        return tuple(self._shortfalls()) if self.phase == "done" else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Which networks are much smaller than their targets; empty before the end."""
        if self.phase != "done" or self.targets[0].searched:
            return ()
        return tuple(filter(None, map(_undershoot, self.networks)))

    def _shortfalls(self) -> Iterator[str]:
        searched = self.targets[0].searched
        if missing := 0 if searched else len(self.targets) - len(self.networks):
            yield f"the last {missing} of {len(self.targets)} targets have not been begun"
        for rung in self.networks if not searched or self.rung is None else (self.rung,):
            target = self.targets[0] if searched else rung.target
            size = f"{rung.bits:.3f} bits per weight, {rung.bytes:,} bytes"
            if target.bytes is not None and rung.bytes > target.bytes:
                found = without_clusters(self.others)
                yield f"{size}, more than {target.bytes:,} bytes: no assignment takes fewer{found}"
            if target.bits is not None and rung.bits > target.bits:
                yield f"{size}, more than {target.bits:g} bits: no assignment takes fewer"
            if not rung.within(target.max_drop):
                yield f"a drop of {rung.drop:.4g} at {size}, more than {target.max_drop:g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "targets": [asdict(target) for target in self.targets],
            "phase": self.phase,
            "step": self.step,
            "total_steps": self.total_steps,
            "rungs": [asdict(rung) for rung in self.rungs],
            "chosen": self.chosen,
            "reference": self.reference,
            "strength": None if self.strength is None else asdict(self.strength),
            "sensitivities": dict(self.sensitivities),
            "met": self.met,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "bytes_without_clusters": sum(self.others.values()),
            "layers": None if self.layers is None else self.layers.to_dict(),
        }

    def __str__(self) -> str:
        """One line, then the table of layers."""
        lines = [f"{self.phase}: step {self.step:,} of {self.total_steps:,}"]
        for number, rung in enumerate(self.rungs):
            quality = "" if rung.drop is None else f", a drop of {rung.drop:.4g}"
            mark = " (chosen)" if number == self.chosen and len(self.networks) > 1 else ""
            mark = " (on the way)" if rung.between else mark
            lines.append(f"{rung.bytes:,} bytes, {rung.bits:.3f} bits per weight{quality}{mark}")
        lines += [f"warning: {text}" for text in (*self.warnings, *self.notes)]
        if self.layers is not None:
            lines.append(str(self.layers))
        return "\n".join(lines)


def without_clusters(others: Mapping[str, int]) -> str:
    """What tensors without clusters take of a file, and the largest; empty where there are none."""
    if not others:
        return ""
    name, largest = next(iter(others.items()))
    return (
        f"; {sum(others.values()):,} bytes are tensors without clusters, '{name}' the largest "
        f"({largest:,})"
    )


def _undershoot(rung: Rung) -> str:
    """A note on a network far below its target; empty of others."""
    target = rung.target
    for name, size in (("bytes", rung.bytes), ("bits", rung.bits)):
        most = getattr(target, name)
        if most is not None and size < LEAST * most:
            sizes = [f"{x:,}" if isinstance(x, int) else f"{x:.4g}" for x in (size, most)]
            return (
                f"{sizes[0]} {name}, less than the {sizes[1]} of the target: accuracy may be lost; "
                "more steps, a smaller learning rate or another target help"
            )
    return ""
