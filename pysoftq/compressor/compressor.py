"""From a target to a compressed network, within the steps of any training loop."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.artifact.forms import Coding
from pysoftq.artifact.size import FileSize
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.clusters.written import lost_clusters
from pysoftq.compressor.evaluation import Evaluate, measured, returned
from pysoftq.compressor.merging import FIRST_PRICE, merge_to
from pysoftq.compressor.meter import Meter, single_values
from pysoftq.compressor.network import Network, keep, put_back
from pysoftq.compressor.report import TargetReport, without_clusters
from pysoftq.compressor.rungs import (
    COUPLED,
    MIN_STEPS,
    Rung,
    check_ladder,
    chosen,
    next_target,
    path,
    rungs_of,
)
from pysoftq.compressor.sensitivity import Sensitivity
from pysoftq.compressor.strength import Strength, choose_strength, measure_strength
from pysoftq.compressor.target import Target, targets_of
from pysoftq.compressor.training import Rates, RungTraining
from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport, LayerReport
from pysoftq.errors import QualityWarning, abridged
from pysoftq.models.claims import claim, release
from pysoftq.models.steps import StepHooks, gradient_scale, several_evaluations
from pysoftq.models.wrappers import torch_optimizer

LOOKS = 100  # at the size of the coupled network in the course of the coupling, and at gradients
SPARE_BITS = 2.0  # that merging and training save on top of the coupling
VALUES_LR = 0.01
NEARLY = 0.01  # share of the peak learning rates at which a training is as good as done
EXCESS = 0.1  # share of steps after the last that a count of them may miss


class Compressor:
    """Compresses a network to a target in bytes, bits or loss, within the steps of its training.

    Example::

        compressor = Compressor(model, Target(bytes=60_000))
        compressor.attach(optimizer, total_steps=epochs * len(loader))
        for _ in range(epochs):
            for inputs, targets in loader:  # the loop as it is without
                ...
                optimizer.step()
        report = compressor.finalize()
        save_compressed(model, "compressed.safetensors")

    In the first part of the steps the weights of each layer attract each other (`SoftQuantizer`),
    until they take little more than the target. Then neighbouring clusters merge, and for the rest
    of the steps the model computes with the clusters' values, while weights, which may change
    clusters, values and all other parameters are trained (`Codebooks`). The optimizer trains
    weights and other parameters, with its own clipping, accumulation and precision; Adam trains
    the values. In the second part all learning rates fall to 0 along a cosine, those of the
    optimizer from the largest that they have had, and for the time of a step only: a schedule of
    its own has its effect before.

    The size is controlled in training: the rate-distortion weight is the multiplier of the
    constraint, and follows the measured code length (dual ascent, `pysoftq.compressor.price`).

    A largest drop is searched for: the second part is divided into rungs of fewer and fewer bits,
    and from the first that loses too much on, of sizes in between. Several targets are rungs of
    one ladder, from the first to the last; each begins with the network of the one before.

    From the second part on, the model computes with what would be saved; it holds the weights only
    within a step. A training that is resumed from checkpoints (`state_dict`, with those of model
    and optimizer) ends with the same network bit for bit. Copies and pickles take the model and the
    attached optimizer along, and `evaluate` as it is; a shallow copy is not attached.

    Where several processes train the model (DistributedDataParallel, FSDP2),
    all of them make the same calls.

    Args:
        model: as for `SoftQuantizer`; or a `SoftQuantizer` after a training with it, which is
            detached. Its clusters merge in `attach`, and all steps are for merged clusters.
        target: one, or several of a ladder.
        config: of coupling and clusters; also as a mapping. The strength h is chosen from the
            gradients of the first step if it is not set there (`pysoftq.compressor.strength`).
            Those of the coupling have no effect with a `SoftQuantizer`.
        coupled: share of the steps with coupling at most, from 0 to below 1; by default a
            quarter. With 0 clusters merge in the first step, as soon as its gradients tell what
            errors in each layer cost.
        values_lr: peak learning rate of the values, in standard deviations of their layer.
        weights_lr: peak learning rate of the weights and all other parameters while clusters are
            trained; by default the largest that each group of the optimizer has had so far.
        coding: of the file, as in `save_compressed`.
        metadata: that the file will have, which counts in its bytes.

    Attributes:
        model: as given, or what it wraps.
        softq: the coupling.
        targets: as given.
        path: the targets of all rungs, once attached: those given, and some before a small one on
            the way to it, as many as there are steps for (`pysoftq.compressor.rungs.path`). Of a
            search, its target.
        optimizer: attached to; None if none is.
        file_size: of the compressed file, from the clusters of a moment.
        strength: of the coupling against the gradients of the first step; None before.
        rungs: those begun so far.
        on_rung: called at the end of each rung that is not only on the way to a target, with this
            object, when the model is its network.
        on_strength: called with this object when `strength` is found.
        before_merging: called with this object when the coupling ends, before clusters merge.

    Raises:
        ValueError: as `SoftQuantizer`; `coupled` or `values_lr` is out of range; the refinement is
            that of the paper, but not all targets are rate-distortion weights; several targets of
            which one is to be searched for, or that do not go from large to small.
        TypeError: as `SoftQuantizer`; a tensor cannot be stored in a file.
    """

    def __init__(  # noqa: PLR0913 - what to reach, and how the file is written
        self,
        model: nn.Module | SoftQuantizer,
        target: Target | Sequence[Target],
        config: ClusteringConfig | Mapping[str, Any] | None = None,
        *,
        coupled: float = COUPLED,
        values_lr: float = VALUES_LR,
        weights_lr: float | None = None,
        coding: Coding = "entropy",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        config = ClusteringConfig.of(config)
        if not values_lr > 0:
            raise ValueError(f"`values_lr` must be > 0, got {values_lr}")
        if weights_lr is not None and not weights_lr > 0:
            raise ValueError(f"`weights_lr` must be > 0, got {weights_lr}")
        self.targets = targets_of(target)
        self.path = self.targets
        if not 0 <= coupled < 1:
            raise ValueError(f"`coupled` must be in [0, 1), got {coupled}")
        priced = all(one.rd_weight is not None for one in self.targets)
        if config.refinement == "count" and not priced:
            raise ValueError("`refinement` must not be count: no price of it leads to a size")
        self.config = config
        self._soft = isinstance(model, SoftQuantizer)  # which a coupling has gathered already
        if isinstance(model, SoftQuantizer):
            model.detach()
            self.softq, coupled = model, 0.0
        else:
            self.softq = prepare(model, config if coupled else config.model_copy(update={"h": 0.0}))
        self.model = self.softq.model
        self.optimizer: Optimizer | None = None
        self.strength: Strength | None = None
        self.rungs: list[Rung] = []
        self.on_rung: Callable[[Compressor], object] | None = None
        self.on_strength: Callable[[Compressor], object] | None = None
        self.before_merging: Callable[[Compressor], object] | None = None
        self._coupled, self._values_lr, self._metadata = coupled, values_lr, metadata
        self._weights_lr, self._rates = weights_lr, Rates(weights_lr)
        names = [layer.name for layer in self.softq.layers]
        self.file_size = FileSize(
            self.model,
            names,
            coding=coding,
            granularity=self.softq.granularity,
            metadata=metadata,
        )
        check_ladder(self.targets, self.smallest_bytes, self.softq.size)
        self._step = self._steps = self._coupling_ends = 0
        self._sensitivity = Sensitivity(self.softq)
        self._training: RungTraining | None = None
        self._ended = False
        self._layers: CompressionReport | None = None
        self._evaluate: Evaluate | None = None
        self._reference: float | None = None
        # Of a search: the weights before the first rung, and the network chosen so far.
        self._trunk: Network | None = None
        self._kept: Network | None = None
        self._handles: list[Any] = []
        self._idle: list[tuple[nn.Parameter, Tensor]] = []  # gradients of a step that is left out
        self._beyond = 0  # such steps

    @property
    def codebooks(self) -> Codebooks | None:
        """The values and weights of the present rung; None while weights are coupled."""
        return None if self._training is None else self._training.codebooks

    @property
    def phase(self) -> str:
        """The name of the present part: coupling, training or, after all steps, done."""
        if self._training is None:
            return "coupling"
        return "done" if self._ended else "training"

    @property
    def coupling_steps(self) -> int:
        """The most steps with coupling, once attached."""
        return min(round(self._coupled * self._steps), self._steps - self.rung_count)

    @property
    def rung_count(self) -> int:
        """How many rungs there are in all, once attached."""
        return rungs_of(self.path)

    @property
    def anneal(self) -> float:
        """The share of the optimizer's learning rates that the next step uses."""
        if self._training is None:
            return 1.0
        return 0.0 if self._ended else self._training.anneal

    @property
    def smallest_bytes(self) -> int:
        """The size of the file with a single value for each layer, or segment."""
        return self.file_size.bytes(
            {
                layer.name: single_values(self.softq.bounds(layer), layer)
                for layer in self.softq.layers
            }
        )

    def attach(
        self, optimizer: Optimizer, *, total_steps: int, evaluate: Evaluate | None = None
    ) -> None:
        """Take part in every step of the optimizer from now on.

        Args:
            optimizer: which holds the coupled weights.
            total_steps: of it, in the whole training.
            evaluate: returns a number, higher is better, for the model as it is then; required for
                a largest drop. Called before the first step and after each rung, in evaluation
                mode. It should not look at the test set, since networks are chosen by it.

        Warns:
            QualityWarning: the smallest file is larger than a target, or the network is not.

        Raises:
            TypeError: `optimizer` is none of torch.optim, nor holds one, or has no learning rate.
            ValueError: fewer steps than rungs, `evaluate` is missing or returns no number, or as
                `SoftQuantizer.attach`; processes that train together differ in an option.
            RuntimeError: already attached.
        """
        if self.optimizer is not None:
            raise RuntimeError("already attached")
        if any(target.max_drop is not None for target in self.targets) and evaluate is None:
            raise ValueError("`max_drop` requires `evaluate`, which measures the quality")
        if evaluate is not None and not callable(evaluate):
            raise TypeError(f"`evaluate` must be callable, got {type(evaluate).__name__}")
        count = self.rung_count
        if not hasattr(total_steps, "__index__") or total_steps <= count:
            why = f" for {count} networks" if count > 1 else ""
            raise ValueError(
                f"`total_steps` must be an integer > {count}{why}, got {total_steps!r}"
            )
        total_steps = operator.index(total_steps)  # of NumPy's integers too
        if self._steps not in (0, total_steps):
            raise ValueError(
                f"`total_steps` must be {self._steps}, as in the state, got {total_steps}"
            )
        self.softq.ranks.compare({**self._options, "total_steps": total_steps})
        inner = torch_optimizer(optimizer)
        if not all("lr" in group for group in inner.param_groups):
            raise TypeError(f"`optimizer` must have learning rates, got {type(inner).__name__}")
        self.softq.attach(inner)  # refuses what cannot be coupled
        self.softq.detach()  # the force enters in `_couple`
        if evaluate is not None and self._reference is None:
            self._reference = returned(self.softq, evaluate)
            if not math.isfinite(self._reference):
                raise ValueError(f"`evaluate` must return a finite number, got {self._reference}")
        if not self._step:
            self._warn_of_size()
        self._plan(total_steps)
        self._evaluate = evaluate
        if self._soft and self.phase == "coupling":
            self._begin()
        self.optimizer = inner
        self._register()

    def _plan(self, total_steps: int) -> None:
        """Divide the steps: so many rungs on the way to small targets as there are steps for."""
        self._steps = total_steps
        if self.targets[0].searched:
            return
        spare = (total_steps - self.coupling_steps) // MIN_STEPS - len(self.targets)
        self.path = path(self.targets, self.smallest_bytes, self.softq.size, spare)

    def finalize(self) -> TargetReport:
        """Detach; the model is the network that was chosen.

        Warns:
            QualityWarning: steps are left, the target is not met, or a layer has become constant.

        Raises:
            RuntimeError: not attached.
        """
        if self.optimizer is None:
            ended = " any more: finalized or detached before" if self._steps else ""
            raise RuntimeError(f"not attached to an optimizer{ended}")
        self._close_step()
        notes = list(self._unfinished())
        if self.phase == "coupling":
            self._coupling_ends = self._step
            self._begin()
        if self.phase == "training":
            self._end_rung(last=True)
        elif lost := lost_clusters(self.model):
            notes.append(
                f"the weights of {abridged(list(lost))} have been overwritten since the last step: "
                "the model is not the compressed network"
            )
        self.detach()
        report = self.report()
        assert report.layers is not None
        constant = [str(one) for one in report.layers.warnings if one.kind == "constant"]
        for text in (*notes, *report.warnings, *report.notes, *constant):
            warnings.warn(text, QualityWarning, stacklevel=2)
        return report

    def detach(self) -> None:
        """Take no part in further steps; `attach` continues."""
        self._close_step()
        for handle in self._handles:
            handle.remove()
        if self.optimizer is not None:
            release(self.optimizer, self)
        self._handles, self.optimizer = [], None

    def _unfinished(self) -> Iterator[str]:
        """What a training that is finalized now has missed."""
        left = self._steps - self._step
        if not self._step:
            yield f"finalized before the first of {self._steps} steps of the attached optimizer"
            return
        if self._beyond > EXCESS * self._steps:
            yield (
                f"{self._beyond} steps after the last of {self._steps} have changed nothing: "
                "`total_steps` counts the optimizer's steps, not epochs"
            )
        training = self._training
        last = len(self.rungs) == self.rung_count
        # A few steps that a GradScaler has left out do no harm.
        if left and not (training is not None and last and training.anneal <= NEARLY):
            yield (
                f"finalized {left} steps before the last of {self._steps}: learning rates have "
                "not fallen, and accuracy is lost"
            )

    def report(self) -> TargetReport:
        """Where the compression stands."""
        layers = self._layers
        if layers is not None and self._training is not None:
            layers = layers.with_clusters(self._training.codebooks.palettes())
            layers = replace(layers, easier=self.targets[0].easier, steps=None)
        return TargetReport(
            targets=self.targets,
            phase=self.phase,
            step=self._step,
            total_steps=self._steps,
            rungs=tuple(self.rungs),
            chosen=chosen(self.path, self.rungs) if self._ended else None,
            reference=self._reference,
            strength=self.strength,
            sensitivities=self.softq.sensitivities,
            layers=layers,
            others=self.file_size.others,
        )

    # Within a step of the optimizer.

    def _register(self) -> None:
        if self.optimizer is not None:
            self._handles = [StepHooks(self.optimizer, self._before, self._after)]
            claim(self.optimizer, self, (layer.parameter for layer in self.softq.layers))

    def _before(self, optimizer: Optimizer, evaluation: int) -> None:
        if evaluation > 1:
            self._close_step()
            raise several_evaluations(self)
        if self._ended:
            self._leave_out(optimizer)
            return
        self.softq.refuse_replaced()
        self._rates.note(optimizer)
        coupled = self._training is None and self.coupling_steps > 0
        if self._training is not None:
            self._training.before_step(optimizer)
        if self._step % max(self._steps // LOOKS, 1) == 0:
            gradient = self._sensitivity.look(gradient_scale(optimizer))
            if coupled and self.strength is not None and self.strength.outgrown(gradient):
                self._find_strength(optimizer)
        if coupled:
            self._couple(optimizer)
        elif self._training is None:  # the gradients of the first step tell the layers apart
            self._begin().before_step(optimizer)

    def _after(self, optimizer: Optimizer) -> None:
        if self._ended:
            self._close_step()
            return
        if self._training is not None:
            self._training.after_step(optimizer)
        self._step += 1
        # Later than due where `evaluate` has raised.
        if self._training is not None and self._step >= self._ends(len(self.rungs)):
            self._end_rung()
        elif self._training is None and self._gathered():
            self._coupling_ends = self._step
            self._begin()

    def _close_step(self) -> None:
        """Undo what was done for the time of a step, which may have raised."""
        for parameter, gradient in self._idle:
            parameter.grad = gradient
        self._idle = []
        if self._training is not None:
            self._training.close_step()

    def _leave_out(self, optimizer: Optimizer) -> None:
        """Take the gradients away for the time of a step, so that it changes nothing."""
        every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._idle = [(one, one.grad) for one in every if one.grad is not None]
        self._beyond += 1
        for parameter, _ in self._idle:
            parameter.grad = None

    def _couple(self, optimizer: Optimizer) -> None:
        """Add the force to the gradients, once its strength is chosen."""
        if self.strength is None:
            self._find_strength(optimizer)
        fraction = self.config.fraction(self._step, self.coupling_steps)
        if fraction != self.softq.fraction:  # telling a device costs a little
            self.softq.fraction = fraction
        self.softq.add_force_(gradient_scale(optimizer))

    def _find_strength(self, optimizer: Optimizer) -> None:
        """Choose the strength if it is not set, and measure what it means for the network.

        From the gradients of the first step, and again where they become far larger: then they are
        those that the training itself causes, and the force stays below them.
        """
        if self.config.chooses_h:
            self.strength = choose_strength(self.softq, optimizer)
        else:
            self.strength = measure_strength(self.softq, optimizer)
        if self.strength is None:
            return
        if self.strength.h != self.softq.h:
            self.softq.set_strength(self.strength.h)
        if self.on_strength is not None:
            self.on_strength(self)

    def _gathered(self) -> bool:
        """Whether the coupling ends with this step.

        At the latest after its share of the steps; before that, once the weights have gathered so
        far that their bins take hardly more than the first target: what gathers further takes
        fewer bits than there are, and costs accuracy.
        """
        if self._step >= self.coupling_steps:
            return True
        if self._step % max(self.coupling_steps // LOOKS, 1):
            return False
        target = next_target(self.path, [])
        if target is None or target.rd_weight is not None:
            return False
        meter, bins = Meter(target, self.file_size), self.softq.occupied_bins(self.config.bits)
        return meter.size(bins) <= meter.goal + meter.of_bits(SPARE_BITS, self.softq.size)

    # From one rung to the next.

    def _ends(self, number: int) -> int:
        """The step at which so many rungs are done."""
        begin = self._coupling_ends
        return begin + (self._steps - begin) * number // self.rung_count

    def _begin(self) -> RungTraining:
        """Merge the clusters of the weights at the price of the next target, to train them on."""
        if self._training is not None:
            self._training.codebooks.lend()
            self._training = None  # the next one requires its memory
        elif not self.rungs:
            self._warn_of_strength()
            if self.before_merging is not None:
                self.before_merging(self)
        self._sensitivity.apply()
        target = next_target(self.path, self.rungs)
        assert target is not None
        meter = Meter(target, self.file_size)
        start = (self.rungs[-1].rd_weight if self.rungs else 0.0) or FIRST_PRICE
        merged = merge_to(self.softq, self.config, target, meter, start)
        if self.targets[0].searched and not self.rungs:
            self._trunk = keep(self.softq, weights=merged.weights)
        self._layers = merged.report
        prices = self.softq.rd_weights(merged.price)
        codebooks = Codebooks(self.model, merged.clusters, merged.weights, prices)
        number = len(self.rungs)
        steps = self._ends(number + 1) - self._ends(number)
        between = not self.targets[0].searched and target not in self.targets
        rung = Rung(target, max(steps, 1), rd_weight=merged.price, between=between)
        self.rungs.append(rung)
        self._training = RungTraining(
            self.softq, codebooks, rung, meter, self._values_lr, self._rates
        )
        self._training.settle(merged.bins, merged.clusters)
        return self._training

    def _warn_of_size(self) -> None:
        wanted = [target.bytes for target in self.targets if target.bytes is not None]
        if not wanted:
            return
        if self.smallest_bytes > min(wanted):
            warnings.warn(
                f"a target of {min(wanted):,} bytes cannot be met: with one value for each layer, "
                f"or segment, the file has {self.smallest_bytes:,} bytes"
                f"{without_clusters(self.file_size.others)}",
                QualityWarning,
                stacklevel=3,
            )
        if max(wanted) >= self.file_size.raw_bytes:
            warnings.warn(
                f"a target of {max(wanted):,} bytes does not compress the network, which takes "
                f"{self.file_size.raw_bytes:,} bytes",
                QualityWarning,
                stacklevel=3,
            )

    def _warn_of_strength(self) -> None:
        if self._step and self.strength is None and self.config.chooses_h:
            warnings.warn(
                "no step had gradients to choose `h` from, all were 0, NaN or infinite: the "
                f"weights were coupled with h = {self.softq.h:g}",
                QualityWarning,
                stacklevel=2,
            )

    def _end_rung(self, *, last: bool = False) -> None:
        training = self._training
        assert training is not None
        training.finish()
        training.rung.steps = training.done  # fewer if it is finalized early
        if not training.rung.between:
            self._present(training.rung)
        self._ended = last or len(self.rungs) == self.rung_count
        if self.targets[0].searched:
            self._choose(training)
        if not self._ended:
            del training  # the next one requires its memory
            self._begin()

    def _present(self, rung: Rung) -> None:
        """Measure the network that was asked for, and tell of it."""
        if self._evaluate is not None and self._reference is not None:
            rung.quality = measured(self.softq, self._evaluate)
            rung.drop = self._reference - rung.quality
        if self.on_rung is not None:
            self.on_rung(self)

    def _choose(self, training: RungTraining) -> None:
        """Keep the network if it is the best of a search so far; else go back to where it began."""
        best = chosen(self.targets, self.rungs)
        if best == len(self.rungs) - 1:
            self._kept = keep(self.softq, training.state_dict())
        if not (self._ended or self.rungs[best].within(self.targets[0].max_drop)):
            assert self._trunk is not None
            self._training = None
            put_back(self.softq, self._trunk)
        elif best != len(self.rungs) - 1:
            assert self._kept is not None
            self._training = self._restored(self._kept["training"], best)
            put_back(self.softq, self._kept)

    def _restored(self, state: Mapping[str, Any], number: int) -> RungTraining:
        """The training of a rung as it was."""
        rung = self.rungs[number]
        meter = Meter(rung.target, self.file_size)
        return RungTraining.restore(self.softq, state, rung, meter, self._values_lr, self._rates)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue bit for bit, with the states of model and optimizer.

        Tensors of weights are divided between processes as the parameters are (DTensor).
        """
        rows = None if self._layers is None else [asdict(row) for row in self._layers.layers]
        return {
            "options": self._options,
            "steps": self._steps,
            "step": self._step,
            "coupling_ends": self._coupling_ends,
            "ended": self._ended,
            "reference": self._reference,
            "strength": None if self.strength is None else asdict(self.strength),
            "rungs": [asdict(rung) for rung in self.rungs],
            "layers": rows,
            "softq": self.softq.state_dict(),
            "sensitivity": self._sensitivity.state_dict(),
            "rates": self._rates.state_dict(),
            "training": None if self._training is None else self._training.state_dict(),
            "trunk": self._trunk,
            "kept": self._kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; to be called before `attach`, after the model has its own.

        Raises:
            ValueError: the state is of other targets or options, or does not fit the model.
            RuntimeError: attached.
        """
        if self.optimizer is not None:
            raise RuntimeError("attached: load the state before attach(), or call detach() first")
        if missing := sorted(set(self.state_dict()) - set(state)):
            raise ValueError(f"the state lacks {', '.join(missing)}")
        mine = self._options
        theirs = state["options"]
        if changed := [name for name, value in mine.items() if theirs.get(name) != value]:
            differences = [f"{name} {theirs.get(name)}, not {mine[name]}" for name in changed]
            raise ValueError(f"the state is of other options: {'; '.join(differences)}")
        self.softq.resume(state["softq"])
        self._sensitivity.load_state_dict(state["sensitivity"])
        self._rates.load_state_dict(state["rates"])
        self._step, self._ended = state["step"], state["ended"]
        self._plan(state["steps"])
        self._coupling_ends = state["coupling_ends"]
        self._reference = state["reference"]
        self.strength = None if state["strength"] is None else Strength(**state["strength"])
        self.rungs = [Rung.of(rung) for rung in state["rungs"]]
        self._trunk, self._kept = state["trunk"], state["kept"]
        self._layers = self._training = None
        if state["layers"] is not None:
            rows = tuple(LayerReport(**row) for row in state["layers"])
            self._layers = CompressionReport(rows, self.softq.tensors(), self.config.refinement)
        if state["training"] is not None:
            number = len(self.rungs) - 1
            if self._ended:
                number = chosen(self.path, self.rungs)
            self._training = self._restored(state["training"], number)

    def __repr__(self) -> str:
        targets = ", ".join(map(str, self.targets))
        return f"<Compressor {targets}: {self.phase}, step {self._step:,} of {self._steps:,}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and pickles of an optimizer are without hooks.
        self.__dict__.update(state)
        self._register()

    def __copy__(self) -> Compressor:
        # Attached to the same optimizer, it would step the values a second time.
        other = object.__new__(type(self))
        other.__dict__.update(self.__getstate__(), optimizer=None)
        return other

    @property
    def _options(self) -> dict[str, Any]:
        """What has to be the same when a training is resumed, as plain values."""
        return {
            "targets": [str(target) for target in self.targets],
            "coupled": self._coupled,
            "values_lr": self._values_lr,
            "weights_lr": self._weights_lr,
            "coding": self.file_size.coding,
            "metadata": self._metadata,
            **self.config.model_dump(mode="json"),
        }
