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

DROP = 0.05  # of the quality before compression, from which on a network is much worse


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
        """Which networks are far below their targets or much worse; empty before the end."""
        if self.phase != "done" or self.targets[0].searched:
            return ()
        return tuple(note for rung in self.networks for note in self._notes_on(rung))

    def _notes_on(self, rung: Rung) -> Iterator[str]:
        target = rung.target
        steered = rung.rd_weight != 0  # sizes of packed indices are few
        for name, size in (("bytes", rung.bytes), ("bits", rung.bits)):
            most = getattr(target, name)
            if most is not None and steered and size < LEAST * most:
                sizes = [f"{x:,}" if isinstance(x, int) else f"{x:.4g}" for x in (size, most)]
                weaker = "" if self.strength is None else "a weaker coupling (smaller `h`), "
                yield (
                    f"{sizes[0]} {name}, less than the {sizes[1]} of the target: accuracy may be "
                    f"lost; {weaker}more steps or another target help"
                )
        if rung.drop is None or self.reference is None or target.max_drop is not None:
            return
        if rung.drop > DROP * abs(self.reference):
            yield (
                f"a drop of {rung.drop:.4g} from {self.reference:.4g} at {rung.bytes:,} bytes: a "
                "larger target loses less"
            )

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
            mark = " (chosen)" if number == self.chosen and self.targets[0].searched else ""
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
