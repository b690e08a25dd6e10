"""The coupling of a model's weights, for any PyTorch training loop (Table I, steps 1 and 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.clusters.binning import MAX_BITS, Bins, find_bins, find_bins_at_scale
from pysoftq.clusters.clusters import AnyPalette, Clusters, layer_rd_weights
from pysoftq.clusters.merging import merge
from pysoftq.clusters.refinement import refine
from pysoftq.clusters.written import mark_clusters
from pysoftq.coupling.devices import (
    Batch,
    DeviceGroup,
    MovedError,
    group_by_device,
    refuse_sparse,
)
from pysoftq.coupling.inventory import take_inventory
from pysoftq.coupling.options import DEFAULT_H, DEFAULTS, Refinement, check_override
from pysoftq.coupling.report import CompressionReport, LayerReport, TensorReport
from pysoftq.coupling.selection import (
    as_patterns,
    first_match,
    match_override,
    select,
)
from pysoftq.coupling.zeros import KeptZeros
from pysoftq.errors import QualityWarning, abridged
from pysoftq.interaction.arrays import (
    POTENTIALS,
    check_bins,
    check_fraction,
    check_granularity,
    check_method,
    check_potential,
    check_seed,
    finite_energy,
)
from pysoftq.interaction.backends import DeviceCoupling
from pysoftq.interaction.host import on_host
from pysoftq.interaction.layers import CoupledLayer, Scales, degeneracy
from pysoftq.interaction.pieces import Alone, Ranks, shape_of, size_of
from pysoftq.interaction.potentials import METHODS
from pysoftq.interaction.ranks import digest
from pysoftq.interaction.scales import Segments
from pysoftq.interaction.segments import segment_bounds
from pysoftq.models.claims import claim, refuse_claimed, release
from pysoftq.models.sharding import Sharding, parameters_of, replicas_of
from pysoftq.models.steps import StepHooks, gradient_scale
from pysoftq.models.wrappers import owner, runnable, torch_optimizer, unwrapped

_OPTIONS = ("h", "w", "alpha", "bins", "method", "potential", "granularity", "seed", "override")
_SQUARED = 2**22  # gradients squared at a time


@dataclass(frozen=True)
class CouplingEnergy:
    """Compression loss L_C (Eq. 6, without self terms): in total and of each layer, times h_l.

    With the log potential, h_l times the nats of the code of each layer.
    """

    total: float
    layers: dict[str, float]


@dataclass(frozen=True)
class Balance:
    """Root mean squares of force and loss gradient over the weights of a layer."""

    force: float
    gradient: float

    @property
    def ratio(self) -> float:
        """Force over gradient; inf without gradient."""
        return self.force / self.gradient if self.gradient else math.inf

    @classmethod
    def of(cls, size: int, sums: Sequence[Sequence[float]]) -> Balance:
        """From sums of squares over the weights in each process."""
        return cls(*(math.sqrt(math.fsum(column) / size) for column in zip(*sums, strict=True)))


class SoftQuantizer:
    """Couples the weights of each layer of a model by a short-range attraction (Eqs. 1-7).

    Measures N_l and sigma_l of each weight tensor now, and freezes w_l = w · sigma_l and
    h_l = h · N_l^(-alpha). Once attached, every `optimizer.step()` begins by adding h_l · dV/dtheta
    to the gradients (Eq. 7): after gradient clipping and unscaling, never per micro-batch. This is
    the paper's convention; the true gradient of Eq. 2 is twice as large, since ordered pairs
    count twice. The model and the optimizer stay yours and unchanged.

    With `potential="log"` the loss of a layer is the length of the code of its weights in nats,
    under their density smoothed by the well (docs/physics.md). The force is h_l · dV/dtheta over
    |V|: of the same order in the tails of a layer as in its centre. All layers have the strength
    h_l = h / N_total, of all coupled weights: h is what a nat per weight of the network costs.

    Weights with two or more dimensions are coupled; biases and normalisation never. Tied weights
    count once; frozen parameters are left out, and a parameter without a gradient is skipped for
    the step. Constant layers and single weights cannot be coupled: a warning names them.

    With `granularity`, channels or groups of weights take the place of layers: each segment s has
    its own sigma_s, width w · sigma_s, strength (with N_s for N_l) and histogram, whose bins are
    in proportion to its weights, and interacts only with itself.

    The force is computed where the weights are, and a model may move between devices at any time.
    A step on the CPU refuses weights that are not finite with a ValueError. Elsewhere a step never
    waits: it leaves out the force, and `check()` raises the error. CUDA graphs that have recorded a
    step use memory of this object, which must live as long.

    Where several processes hold pieces of the weights, all of them make the same calls: the
    constructor, `attach`, steps, `energy`, `clusters`, `finalize`, `state_dict`. A step exchanges
    ranges and counts of all layers at once, and every process adds the force that one process
    would add, bit by bit.

    `copy.deepcopy` and `pickle` take the model and the attached optimizers along, and the result is
    attached to those; model, optimizer and quantizer copied in one call stay together. A shallow
    copy is not attached.

    Args:
        model: any module; compiled, data-parallel and other wrapped ones are looked into
            (`pysoftq.models.wrappers`). Of weights sharded by `fully_shard` or tensor parallelism
            (DTensor), or by FSDP1 with `use_orig_params`, results are those of one process.
        h: strength of the interaction, 0 or more; 0 leaves training as it is, bit for bit, but for
            zeros that are kept (`sparsity`). By default 0.01, of the log potential 100.
        w: range of the interaction, in standard deviations of each layer.
        alpha: exponent of h_l = h · N_l^(-alpha); for the linear potential only.
        bins: number of bins N_b of each layer's histogram.
        method: "scan", exact window sums, or "fft", the convolution of the paper.
        potential: "linear" (the paper's) or "log".
        fraction: share of the weights drawn into the histogram, in (0, 1]; may be set at any time.
        seed: of these draws; they depend only on (seed, step, layer, position in memory).
        granularity: what interacts only with itself: "layer", "channel" (each slice of a weight
            along dimension 0) or "group:N" (each N consecutive weights within such a slice).
        include: shell-style patterns of parameter names to couple; None takes all weights.
        exclude: patterns to leave out, stronger than include.
        override: h, w or both for the layers that a pattern matches, `{"fc.*": {"w": 0.3}}`; of
            several patterns that match a layer, the first applies.
        sparsity: which exact zeros stay zero, through training (their gradients are cleared) and
            in the clusters: those of pruned layers (at least 1 % zeros) and of padding rows
            ("auto"), all ("keep") or none ("ignore").

    Attributes:
        model: as given, or what it wraps.
        optimizers: those attached.
        layers: the coupled layers, in model order.
        override: as given.
        excluded: why each other parameter is not coupled, by name.

    Raises:
        ValueError: a value is out of range, a pattern matches nothing, weights are not finite
            (layer and count are named), or nothing is left to couple.
        TypeError: `model` is not a module, or a compiled one of torch.jit.
    """

    def __init__(  # noqa: PLR0913 - each option of the coupling
        self,
        model: nn.Module,
        h: float | None = None,
        w: float = DEFAULTS.w,
        *,
        alpha: float = DEFAULTS.alpha,
        bins: int = DEFAULTS.bins,
        method: str = DEFAULTS.method,
        potential: str = DEFAULTS.potential,
        fraction: float = 1.0,
        seed: int = DEFAULTS.seed,
        granularity: str = DEFAULTS.granularity,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        override: Mapping[str, Mapping[str, float]] | None = None,
        sparsity: str = DEFAULTS.sparsity,
    ) -> None:
        include, exclude = as_patterns(include), as_patterns(exclude)
        self.model = runnable(model)
        self._sharding = Sharding(self.model)
        self._replicas = replicas_of(model)
        # First of all: what one process refuses, others would wait for.
        self._sharding.compare(
            {
                "h": h,
                "w": w,
                "alpha": alpha,
                "bins": bins,
                "method": method,
                "potential": potential,
                "fraction": fraction,
                "seed": seed,
                "granularity": granularity,
                "include": include,
                "exclude": exclude,
                "override": override,
                "sparsity": sparsity,
                "the names, shapes or placements of the parameters": parameters_of(self.model),
            }
        )
        self._log = check_potential(potential)
        h = DEFAULT_H[potential] if h is None else h
        self._scales = Scales(h, w, _alpha(alpha, self._log))
        self.override = check_override(override)
        self._bins = check_bins(bins)
        self._fft = check_method(method, METHODS)
        self._granularity = _granularity(granularity, self._fft)
        self._fraction = check_fraction(fraction)
        self._sensitivities: dict[str, float] = {}
        self.seed = check_seed(seed)
        self._step = 0
        self.optimizers: tuple[Optimizer, ...] = ()
        self._handles: list[Any] = []
        # Kept as long as this object: CUDA graphs replay work on their memory.
        self._recorded: dict[DeviceCoupling, None] = {}

        chosen, self.excluded = select(self.model, include, exclude)
        scales = self._layer_scales(chosen)
        layers = []
        for name, parameter in chosen.items():
            piece = self._sharding.piece(name, parameter)
            with on_host():
                layer = CoupledLayer.measure(name, parameter, scales[name], granularity, piece)
            if layer is None:
                reason = degeneracy(parameter, granularity)
                self.excluded[name] = f"degenerate: {reason}"
                warnings.warn(f"layer '{name}' is not coupled: {reason}", stacklevel=2)
                continue
            layers.append(layer)
            if uncoupled := layer.uncoupled_segments:
                warnings.warn(f"layer '{name}': {uncoupled}", stacklevel=2)
        if not layers:
            reasons = [f"{name} ({reason})" for name, reason in self.excluded.items()]
            raise ValueError(f"the model has no weight to couple; left out: {abridged(reasons)}")
        self._couple(_log_layers(layers) if self._log else layers)
        self._zeros = KeptZeros.find(self.model, self.layers, sparsity)

    @property
    def size(self) -> int:
        """Number of coupled weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def h(self) -> float:
        """Strength h of the interaction."""
        return self._scales.h

    @property
    def w(self) -> float:
        """Width w of the well, in standard deviations of each layer."""
        return self._scales.w

    @property
    def alpha(self) -> float:
        """Exponent of h_l = h · N_l^(-alpha); 0 with the log potential, of h_l = h / N_total."""
        return self._scales.alpha

    @property
    def bins(self) -> int:
        """Number of bins N_b of each layer's histogram."""
        return self._bins

    @property
    def method(self) -> str:
        """How the potential is computed, "scan" or "fft"."""
        return METHODS[self._fft]

    @property
    def potential(self) -> str:
        """Of which the force is, "linear" or "log"."""
        return POTENTIALS[self._log]

    @property
    def granularity(self) -> str:
        """What interacts only with itself: "layer", "channel" or "group:N"."""
        return self._granularity

    def set_strength(self, h: float) -> None:
        """Set the strength of the interaction; each layer's changes in proportion.

        Warns:
            UserWarning: a CUDA graph has recorded the coupling and keeps the former strength.

        Raises:
            ValueError: `h` is negative or not finite, or the present strength is 0; or as `check`.
        """
        self.check()
        scales = replace(self._scales, h=h)
        if not self.h:
            raise ValueError("`h` is 0, which no strength is in proportion to")
        self._warn_of_graphs(group for groups in self._groups.values() for group in groups)
        layers = [layer.scaled(scales.h / self.h) for layer in self.layers]
        self._scales = scales
        self._couple(layers)

    @property
    def fraction(self) -> float:
        """Share of the weights drawn into the histogram, in (0, 1]."""
        return self._fraction

    @fraction.setter
    def fraction(self, value: float) -> None:
        self._fraction = check_fraction(value)
        self._tell_devices()

    @property
    def step(self) -> int:
        """How many times the force has entered, for each of several optimizers."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        self._step = check_seed(value, name="step")
        self._tell_devices()

    def advance(self, replays: int = 1) -> None:
        """Count steps replayed from a CUDA graph, which the devices count, but Python does not see.

        Take one step before recording. While a graph is recorded, `step` stands still, and its
        replays draw their samples as steps outside of it do, if one optimizer is attached:
        `graph.replay(); softq.advance()`. Count all replays before setting `fraction` or `step`.

        Raises:
            ValueError: `replays` is not an integer of 0 or more.
        """
        self._step += check_seed(replays, name="replays")

    def attach(self, *optimizers: Optimizer) -> None:
        """Add the force at the beginning of every step of these optimizers, from now on.

        Closures are understood (the force follows each evaluation), and so are fused optimizers
        under a GradScaler, which unscale inside their step: the force is scaled alike, for which a
        GPU is waited for once per step. Of the optimizers of accelerate and Lightning, and others
        that hold one of torch, that one is attached.

        Raises:
            TypeError: an argument is not an optimizer of torch.optim, nor holds one.
            ValueError: no optimizer is given, one is given twice, a coupled layer belongs to
                none of them, a SoftQuantizer, Compressor or Codebooks trains it in their steps
                already, or processes that train the model together (FSDP, tensor parallelism,
                DistributedDataParallel) differ in seed, options, layers or scales.
            RuntimeError: already attached.
        """
        if self._handles:
            raise RuntimeError("already attached: call detach() first")
        inner = tuple(map(torch_optimizer, optimizers))
        if not inner or len(set(map(id, inner))) < len(inner):
            raise ValueError("attach() takes one or more different optimizers")
        self._refuse_orphans(self.layers, inner)
        for one in inner:
            refuse_claimed(one, {layer.name: layer.parameter for layer in self.layers})
        self._compare_processes()
        self._register(inner)

    def _refuse_orphans(
        self, layers: Sequence[CoupledLayer], optimizers: Sequence[Optimizer]
    ) -> None:
        """Raise ValueError for layers that none of the optimizers updates."""
        owned = list(map(_parameters_of, optimizers))
        orphans = [
            layer.name for layer in layers if not any(id(layer.parameter) in ids for ids in owned)
        ]
        if orphans:
            raise ValueError(
                f"coupled layers that no given optimizer updates: {abridged(orphans)}; "
                "leave them out with exclude=, or attach all optimizers in one call"
            )

    def _compare_processes(self) -> None:
        """Raise ValueError in every process that trains this model if they would drift apart."""
        facts = {
            "h": self.h,
            "w": self.w,
            "alpha": self.alpha,
            "bins": self.bins,
            "method": self.method,
            "potential": self.potential,
            "fraction": self.fraction,
            "seed": self.seed,
            "step": self.step,
            "granularity": self.granularity,
            "the coupled layers": digest([layer.name for layer in self.layers]),
            "the widths and strengths": digest(
                [(layer.sigma, layer.width, layer.strength) for layer in self.layers]
            ),
        }
        self._sharding.compare(facts)
        if self._replicas is not None:
            self._replicas.compare(facts)

    def detach(self) -> None:
        """Detach from the optimizers."""
        for handle in self._handles:
            handle.remove()
        for optimizer in self.optimizers:
            release(optimizer, self)
        self._handles.clear()
        self.optimizers = ()

    def add_force_(self, scale: float = 1.0) -> None:
        """Add the force to the gradients once, by hand, for loops without `attach`.

        Args:
            scale: the gradients' present scale, where they are not unscaled yet.

        Raises:
            RuntimeError: attached; the force would enter twice.
            ValueError: weights are not finite, naming layer and count; no gradient has changed.
        """
        if self._handles:
            raise RuntimeError("attached to an optimizer, which adds the force itself")
        self._add_force(tuple(range(len(self.layers))), scale)

    @torch.no_grad()
    def balance(self) -> dict[str, Balance]:
        """Force against gradient of each layer that has a gradient, before a step.

        Gradients are left as they are; for the time of the call they take their memory twice.

        Raises:
            ValueError: as in `add_force_`.
        """
        layers = [layer for layer in self.layers if layer.gradient is not None]
        gradients = [layer.gradient for layer in layers]
        kept = [gradient.clone() for gradient in gradients if gradient is not None]
        step = self._step
        try:
            for gradient in gradients:
                gradient.zero_()  # type: ignore[union-attr]
            self._add_force(tuple(range(len(self.layers))), 1.0)
            rows = {
                layer.name: [_square(gradient, layer), _square(before, layer)]
                for layer, gradient, before in zip(layers, gradients, kept, strict=True)
            }
        finally:
            self.step = step
            for gradient, before in zip(gradients, kept, strict=True):
                gradient.copy_(before)  # type: ignore[union-attr]
        parts = self._sharding.ranks.collected(rows)
        sums = {
            layer: [part[layer.name] for part in parts if layer.name in part]
            for layer in self.layers
        }
        return {layer.name: Balance.of(layer.size, own) for layer, own in sums.items() if own}

    def check(self) -> None:
        """Raise if a step was refused since the last check; waits for the device.

        On the CPU a step with weights that are not finite raises itself. Other devices go on
        without waiting: such a step leaves all their gradients without the force, and is reported
        here. Worth calling once per epoch.

        Raises:
            ValueError: naming layer and count, as in `add_force_`.
        """
        for coupling in self._couplings():
            coupling.check()

    def energy(self) -> CouplingEnergy:
        """Compression loss L_C = sum_l h_l sum_i V(theta_i), self terms left out (Eq. 6).

        With the log potential, L_C = -sum_l h_l sum_i log(|V(theta_i)| / (N_l w_l)): h times the
        mean length of the code of a weight, in nats. Then V has its self term.

        Raises:
            ValueError: weights are not finite, naming layer and count, the energy overflows
                float64, or a layer's parameter has been replaced since it was measured.
        """
        self.refuse_replaced()
        every = tuple(range(len(self.layers)))
        groups = self._groups.get(every) or self._regroup(every)
        try:
            found = [group.energies() for group in groups]
        except MovedError:
            found = [group.energies() for group in self._regroup(every)]
        known = {name: energy for part in found for name, energy in part.items()}
        # Groups leave out layers of strength 0.
        energies = {layer.name: known.get(layer.name, 0.0) for layer in self.layers}
        return CouplingEnergy(finite_energy(math.fsum(energies.values())), energies)

    def rd_weights(self, rd_weight: float) -> dict[str, float]:
        """The rate-distortion weight of each layer, in its weights squared per bit.

        In proportion to sigma_l² N_l / s_l with the sensitivities s_l, all 1 unless they are set;
        see `pysoftq.clusters.clusters.layer_rd_weights`.

        Raises:
            ValueError: `rd_weight` is negative or not finite.
        """
        if not (math.isfinite(rd_weight) and rd_weight >= 0):
            raise ValueError(f"`rd_weight` must be finite and >= 0, got {rd_weight}")
        names = [layer.name for layer in self.layers]
        variances = [layer.sigma**2 for layer in self.layers]
        sizes = [layer.size for layer in self.layers]
        known = self._sensitivities
        measured = [known.get(name, 0.0) for name in names] if known else None
        found = layer_rd_weights(rd_weight, variances, sizes, measured)
        return dict(zip(names, found, strict=True))

    @property
    def sensitivities(self) -> dict[str, float]:
        """What a relative error in each layer costs, by name; empty unless set."""
        return dict(self._sensitivities)

    def set_sensitivities(self, sensitivities: Mapping[str, float]) -> None:
        """Set what a relative error in each layer costs: its squared gradient times sigma_l².

        Rate-distortion weights follow it (`rd_weights`); only ratios matter. Layers that are not
        named count as insensitive. An empty mapping makes all layers alike.

        Raises:
            ValueError: a value is negative or not finite, or a name is no coupled layer's.
        """
        self._sensitivities = _check_sensitivities(sensitivities, self.layers)

    def squared_gradients(self) -> dict[str, float]:
        """The sum of squares of the gradient of each layer that has one, before a step.

        Raises:
            ValueError: a gradient is sparse.
        """
        rows = {}
        for layer in self.layers:
            if (gradient := layer.gradient) is not None:
                refuse_sparse(layer.name, gradient)
                rows[layer.name] = _square(gradient, layer)
        parts = self._sharding.ranks.collected(rows)
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: math.fsum(part.get(name, 0.0) for part in parts) for name in names}

    def bounds(self, layer: CoupledLayer) -> Tensor | None:
        """Where the layer's segments begin and end, (G+1,); None where the layer is one."""
        if layer.segments is None:
            return None
        return segment_bounds(shape_of(layer.parameter), self._granularity)

    @on_host()
    def clusters(
        self, bits: int | None = None, n_min: int | None = None, *, whole: bool = True
    ) -> dict[str, Clusters]:
        """Clusters of each layer by binning, refined if `n_min` is given; nothing is written.

        Args:
            bits: clusters are the occupied ones of 2**bits equal bins of each layer, 7 in the
                paper; None takes bins of at most a quarter of the layer's width w_l, and at least
                2**7 of them (`pysoftq.clusters.binning.identify_at_scale`).
            n_min: as in `finalize`.
            whole: of weights that several processes hold in pieces, index all of them in each
                process; else those in this process (`Clusters.piece`).

        Raises:
            ValueError: `bits` is outside 1..20, `n_min` is negative, or a parameter has been
                replaced since it was measured.
        """
        found = self.occupied_bins(bits)
        if n_min is not None:
            found = {name: refine(bins, n_min) for name, bins in found.items()}
        return {
            layer.name: found[layer.name].clusters(self.kept(layer), whole) for layer in self.layers
        }

    @on_host()
    def occupied_bins(self, bits: int | None = None) -> dict[str, Bins]:
        """The clusters of `clusters` without an index for each weight, to be refined.

        Raises:
            ValueError: as there.
        """
        self.refuse_replaced()
        return {layer.name: self._bins_of(layer, bits) for layer in self.layers}

    @property
    def ranks(self) -> Ranks | Alone:
        """The processes that train the model together, in pieces or in copies."""
        return self._sharding.ranks if self._replicas is None else self._replicas

    def kept(self, layer: CoupledLayer) -> Tensor:
        """The layer's weights with the zeros to be kept at 0."""
        return self._zeros.restored(layer)

    @on_host()
    def _bins_of(self, layer: CoupledLayer, bits: int | None) -> Bins:
        if bits is not None and not 1 <= bits <= MAX_BITS:
            raise ValueError(f"`bits` must be from 1 to {MAX_BITS}, got {bits}")
        theta = self.kept(layer)
        bounds, zeros = self.bounds(layer), layer.name in self._zeros.masks
        try:
            if bits is None:
                return find_bins_at_scale(
                    theta, layer.widths, bounds, zeros=zeros, piece=layer.piece
                )
            return find_bins(theta, bits, bounds, zeros=zeros, piece=layer.piece)
        except ValueError as error:
            raise ValueError(f"layer '{layer.name}': {error}") from None

    @on_host()
    def refine(
        self,
        clusters: Mapping[str, AnyPalette],
        n_min: int | None = None,
        refinement: Refinement = DEFAULTS.refinement,
        rd_weight: float = DEFAULTS.rd_weight,
    ) -> dict[str, AnyPalette]:
        """Fewer clusters of each layer; the arguments are those of `finalize`."""
        if refinement not in get_args(Refinement):
            known = ", ".join(get_args(Refinement))
            raise ValueError(f"`refinement` must be one of {known}, got {refinement!r}")
        if refinement == "count":
            n_min = DEFAULTS.n_min if n_min is None else n_min
            return {name: refine(found, n_min) for name, found in clusters.items()}
        if n_min is not None:
            raise ValueError(f"`n_min` is for refinement 'count', got {n_min} for {refinement!r}")
        weights = self.rd_weights(rd_weight)
        return {name: merge(found, weights[name], refinement) for name, found in clusters.items()}

    def finalize(
        self,
        bits: int | None = DEFAULTS.bits,
        n_min: int | None = None,
        refinement: Refinement = DEFAULTS.refinement,
        rd_weight: float = DEFAULTS.rd_weight,
    ) -> CompressionReport:
        """Detach, and write the refined clusters' values into the model (Table I, steps 3 and 4).

        Args:
            bits: clusters are the occupied ones of 2**bits equal bins of each layer, 7 in the
                paper; None takes bins of at most a quarter of the layer's width w_l, and at least
                2**7 of them.
            n_min: clusters of at most so many weights (10 by default) join the nearest larger one,
                by the refinement "count" only.
            refinement: "levels", "packed" and "entropy" merge neighbouring clusters wherever the
                bits saved outweigh the squared error added: log2 K for each weight, the ceil(log2
                K) of packed indices, or bits of an entropy coder (`pysoftq.clusters.merging`).
                "count" is the paper's (Table I, step 4): it ignores how far a weight is moved, and
                can ruin a network.
            rd_weight: rate-distortion weight of all refinements but "count", in variances of a
                layer (`rd_weights`); higher means fewer bits.

        Returns:
            The table of layers, with clusters and bit-widths before and after refinement. Its
            `warnings` list layers that have become constant, have scattered, or have not gathered
            in clusters.

        Warns:
            QualityWarning: a layer has become constant; the report notes it at the layer.

        Raises:
            ValueError: a value is out of range, or a layer's parameter has been replaced since
                it was measured; nothing has changed then.
        """
        before = self.occupied_bins(bits)
        after = self.refine(before, n_min, refinement, rd_weight)
        return self.write(before, after, refinement, n_min)

    def write(
        self,
        before: Mapping[str, Bins],
        after: Mapping[str, Bins],
        refinement: Refinement,
        n_min: int | None = None,
    ) -> CompressionReport:
        """Detach, and write clusters that have been refined; see `finalize`.

        Args:
            before: what `occupied_bins` returns.
            after: the same, refined.
            refinement: how; for the report.
            n_min: by "count".
        """
        for layer in self.layers:
            if moved := self._zeros.moved(layer):
                warnings.warn(
                    f"layer '{layer.name}': {moved} of the zeros to be kept have moved in training "
                    "and are set to 0 again; pass sparsity='ignore' to let them move",
                    stacklevel=3,
                )
        if refinement != "count":
            n_min = 0
        elif n_min is None:
            n_min = DEFAULTS.n_min
        rows = (
            LayerReport.of(layer, before[layer.name], after[layer.name], n_min)
            for layer in self.layers
        )
        report = CompressionReport(tuple(rows), self.tensors(), refinement, steps=self._step)
        for warning in report.warnings:
            if warning.kind == "constant":  # the model is unchanged where warnings are errors
                warnings.warn(str(warning), QualityWarning, stacklevel=3)
        self.detach()
        for layer in self.layers:
            self._zeros.reset(layer)
            after[layer.name].write(layer.weights)
        mark_clusters(self.model, after)
        return report

    def tensors(self) -> tuple[TensorReport, ...]:
        """Every parameter and buffer of the model: coupled, excluded or degenerate, and why."""
        rules = {}
        total = _total(self.layers) if self._log else 1
        potential = "log potential" if self._log else ""
        for layer in self.layers:
            scales = layer.scales(self.alpha, total)
            pattern = first_match(self.override, layer.name)
            by = "" if pattern is None else f"override {pattern!r}: "
            kept = self._zeros.note(layer.name)
            scale = f"{by}h = {scales.h:g}, w = {scales.w:g}"
            rules[layer.name] = ", ".join(filter(None, (scale, potential, kept)))
        return take_inventory(self.model, rules, self.excluded)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit: plain values, and tensors for segments."""
        return {
            "granularity": self.granularity,
            "h": self.h,
            "w": self.w,
            "alpha": self.alpha,
            "bins": self.bins,
            "method": self.method,
            "potential": self.potential,
            "fraction": self.fraction,
            "seed": self.seed,
            "step": self.step,
            "override": [[pattern, dict(values)] for pattern, values in self.override.items()],
            "layers": [layer.record() for layer in self.layers],
            "excluded": dict(self.excluded),
            "zeros": self._zeros.state(self.layers),
            "sensitivities": self.sensitivities,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state: its options, its layers with their frozen widths and strengths.

        Attached optimizers stay attached.

        Warns:
            UserWarning: the state replaces options that were given to the constructor; a CUDA
                graph has recorded the coupling and keeps the former one.

        Raises:
            ValueError: a key is missing or a value out of range, or the model lacks a layer or has
                it in another size, or a layer belongs to none of the attached optimizers, or to
                another SoftQuantizer, Compressor or Codebooks; nothing has changed then. Or
                processes that train the model together differ, as for `attach`.
        """
        self._load(state, self._warn_of_other_options)

    def resume(self, state: dict[str, Any]) -> None:
        """`load_state_dict` for whoever has compared the options: nothing is said of them."""
        self._load(state, lambda _: None)

    @on_host()
    def _load(self, state: dict[str, Any], compare: Callable[[dict[str, Any]], None]) -> None:
        older = {"granularity": "layer", "potential": "linear", "override": []}
        state = {**older, "zeros": {}, "sensitivities": {}, **state}
        if missing := sorted(set(self.state_dict()) - set(state)):
            raise ValueError(f"the state lacks {', '.join(missing)}")
        fft, log = check_method(state["method"], METHODS), check_potential(state["potential"])
        granularity = _granularity(state["granularity"], fft)
        fields = {*CoupledLayer.FIELDS, *(() if granularity == "layer" else Segments.FIELDS)}
        parameters = dict(unwrapped(self.model).named_parameters())
        layers = []
        for record in state["layers"]:
            if set(record) != fields:
                raise ValueError(
                    f"a layer of the state has {', '.join(sorted(record))}; expected "
                    f"{', '.join(sorted(fields))}"
                )
            parameter = parameters.get(record["name"])
            if parameter is None or size_of(parameter) != record["size"]:
                found = "none" if parameter is None else f"{size_of(parameter)} weights"
                raise ValueError(
                    f"the state has layer '{record['name']}' of {record['size']} weights; "
                    f"the model has {found}"
                )
            piece = self._sharding.piece(record["name"], parameter)
            layers.append(CoupledLayer.restore(record, parameter, granularity, piece))
        if not layers:
            raise ValueError("the state has no layer")
        if self.optimizers:
            self._refuse_orphans(layers, self.optimizers)
            for optimizer in self.optimizers:
                refuse_claimed(optimizer, {one.name: one.parameter for one in layers}, by=self)
        scales = Scales(state["h"], state["w"], state["alpha"])
        bins, seed = check_bins(state["bins"]), check_seed(state["seed"])
        step = check_seed(state["step"], name="step")
        override = check_override(dict(state["override"]))
        fraction = check_fraction(state["fraction"])
        sensitivities = _check_sensitivities(state["sensitivities"], layers)
        zeros = KeptZeros.restore(state["zeros"], layers)
        compare(state)
        self._warn_of_graphs(group for groups in self._groups.values() for group in groups)
        self._fraction = fraction
        self._fft, self._bins, self.seed, self._step = fft, bins, seed, step
        self._log = log
        self._granularity = granularity
        self._scales, self.override = scales, override
        self.excluded = dict(state["excluded"])
        self._couple(layers)
        self._zeros = zeros
        self._sensitivities = sensitivities
        if self.optimizers:
            optimizers = self.optimizers
            self.detach()
            self._register(optimizers)
            self._compare_processes()

    def _warn_of_other_options(self, state: Mapping[str, Any]) -> None:
        """Warn of options that were given, and are those of the state from now on."""
        mine, usual = self.state_dict(), {**DEFAULTS.model_dump(), "override": []}
        usual |= {"h": DEFAULT_H[self.potential], "alpha": _alpha(DEFAULTS.alpha, self._log)}
        changed = [
            f"{name} {state[name]!r}, not {mine[name]!r}"
            for name in _OPTIONS
            if mine[name] not in (usual[name], state[name])
        ]
        for record in state["layers"]:
            reason = self.excluded.get(record["name"], "")
            if reason.startswith(("exclude pattern", "not matched by include")):
                changed.append(f"'{record['name']}' is coupled ({reason})")
        if changed:
            warnings.warn(
                f"the options of the state take the place of those given: {abridged(changed)}",
                stacklevel=5,  # the caller is beyond on_host
            )

    def _layer_scales(self, names: Collection[str]) -> dict[str, Scales]:
        """The scales asked for each layer, overrides included."""
        scales = dict.fromkeys(names, self._scales)
        for name, pattern in match_override(self.override, names).items():
            try:
                scales[name] = replace(self._scales, **self.override[pattern])
            except ValueError as error:  # noqa: PERF203 - few patterns
                raise ValueError(f"override {pattern!r}: {error}") from None
        return scales

    def _warn_of_graphs(self, former: Iterable[DeviceGroup]) -> None:
        """Warn if graphs go on with couplings that steps no longer use."""
        if any(group.coupling in self._recorded for group in former):
            warnings.warn(
                "a CUDA graph has recorded the coupling as it was before: its replays use the "
                "former weights, widths and strengths; record it again",
                stacklevel=4,
            )

    def _couple(self, layers: Sequence[CoupledLayer]) -> None:
        self.layers = tuple(layers)
        self._places = [owner(self.model, layer.name) for layer in layers]
        self._groups: dict[tuple[int, ...], list[DeviceGroup]] = {}

    def refuse_replaced(self) -> None:
        """Raise ValueError if a layer's parameter is no longer the model's, as forces are lost."""
        self._sharding.give_back()
        replaced = self._replaced()
        if replaced is not None and self._sharding and self._sharding.reshard():
            replaced = self._replaced()
        if replaced is not None:
            raise ValueError(
                f"layer '{replaced}': its parameter has been replaced since it was measured "
                "(by load_state_dict(assign=True) or by sharding, for example); build the "
                "SoftQuantizer afterwards"
            )

    def _replaced(self) -> str | None:
        """The first layer whose parameter is not that of the model; None if there is none."""
        for layer, (module, name) in zip(self.layers, self._places, strict=True):
            replaced = module._parameters.get(name) is not layer.parameter
            if replaced or self._sharding.older_than(layer.parameter):
                return layer.name
        return None

    def _register(self, optimizers: tuple[Optimizer, ...]) -> None:
        self.optimizers = optimizers
        for optimizer in optimizers:
            ids = _parameters_of(optimizer)
            indices = tuple(i for i, layer in enumerate(self.layers) if id(layer.parameter) in ids)
            self._handles.append(StepHooks(optimizer, partial(self._add_force_of, indices)))
            claim(optimizer, self, (self.layers[index].parameter for index in indices))

    def _add_force_of(self, indices: tuple[int, ...], optimizer: Optimizer, _: int) -> None:
        self._add_force(indices, gradient_scale(optimizer))

    def _add_force(self, indices: tuple[int, ...], scale: float) -> None:
        self.refuse_replaced()
        step = self._step
        groups = self._groups.get(indices) or self._regroup(indices)
        try:
            batches = [group.collect() for group in groups]
        except MovedError:
            batches = [group.collect() for group in self._regroup(indices)]
        recorded = self._keep_recorded(batches)
        options = (scale, self._fraction, self.seed, step)
        agreed = [batch.agree(*options) for batch in batches]
        for batch, extremes in zip(batches, agreed, strict=True):
            batch.add_force(extremes, *options)
        for index in indices:
            self._zeros.clear_gradient(self.layers[index])
        # What is recorded in a CUDA graph happens later; see advance().
        if not recorded:
            self._step = step + 1

    def _keep_recorded(self, batches: Sequence[Batch]) -> bool:
        """Whether the step is being recorded; the graph uses the memory of its couplings.

        Raises:
            RuntimeError: some of its layers are recorded and others would be stepped at once.
        """
        recorded = [batch.coupling for batch in batches if batch.coupling.recorded()]
        if recorded and len(recorded) < len(batches):
            raise RuntimeError(
                "a CUDA graph records the coupling of layers on one device only; "
                "move all coupled layers to it"
            )
        self._recorded.update(dict.fromkeys(recorded))
        return bool(recorded)

    def _couplings(self) -> dict[DeviceCoupling, None]:
        """Those of the next steps, and those that recorded CUDA graphs use."""
        groups = (group for groups in self._groups.values() for group in groups)
        return {**dict.fromkeys(group.coupling for group in groups), **self._recorded}

    def _tell_devices(self) -> None:
        for coupling in self._couplings():
            coupling.set(1.0, self._fraction, self.seed, self._step)

    @on_host()
    def _regroup(self, indices: tuple[int, ...]) -> list[DeviceGroup]:
        former = self._groups.pop(indices, [])
        for group in former:
            group.coupling.check()
        self._warn_of_graphs(former)
        strong = [index for index in indices if self.layers[index].strength > 0]
        self._groups[indices] = group_by_device(
            self.layers, strong, self.bins, self._fft, self._log
        )
        return self._groups[indices]

    def __repr__(self) -> str:
        optimizers = ", ".join(type(one).__name__ for one in self.optimizers)
        return (
            f"<SoftQuantizer h={self.h:g}, w={self.w:g}, potential={self.potential!r}: "
            f"{self.size:,} coupled weights, layers: {len(self.layers)}, steps: {self.step:,}, "
            f"optimizers: {optimizers or 'none'}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Groups know their parameters, and handles their optimizers; those of a copy are others.
        # A copy need not be made in every process.
        own: dict[str, Any] = {"_groups": {}, "_handles": [], "_recorded": {}, "_replicas": None}
        return {**self.__dict__, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register(self.optimizers)

    def __copy__(self) -> SoftQuantizer:
        # Attached to the same optimizers, it would add the force a second time.
        other = object.__new__(type(self))
        other.__dict__.update(self.__getstate__(), optimizers=())
        return other


def _parameters_of(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _check_sensitivities(
    sensitivities: Mapping[str, float], layers: Iterable[CoupledLayer]
) -> dict[str, float]:
    """A copy; ValueError if a value is negative or not finite, or a name is no layer's."""
    names = {layer.name for layer in layers}
    for name, value in sensitivities.items():
        if name not in names:
            raise ValueError(f"`sensitivities` has '{name}', which is no coupled layer")
        if not 0 <= value < math.inf:
            raise ValueError(f"layer '{name}': sensitivity must be finite, >= 0, got {value}")
    return dict(sensitivities)


def _square(values: Tensor | None, layer: CoupledLayer) -> float:
    """The sum of squares over the weights that this process reports."""
    if values is None or not (layer.piece is None or layer.piece.first):
        return 0.0
    parts = values.reshape(-1).split(_SQUARED)  # in float64, which takes twice their memory
    return math.fsum(float(part.double().square().sum()) for part in parts)


def _alpha(alpha: float, log: bool) -> float:
    """The exponent of the strengths before they are divided by N_total: 0 if they are."""
    if log and alpha != DEFAULTS.alpha:
        raise ValueError(f"`alpha` is for potential 'linear', got {alpha} for 'log'")
    return 0.0 if log else alpha


def _total(layers: Iterable[CoupledLayer]) -> int:
    return sum(layer.coupled_size for layer in layers)


@on_host()
def _log_layers(layers: Sequence[CoupledLayer]) -> list[CoupledLayer]:
    """The layers with strengths of the log potential, h / N_total.

    Raises:
        ValueError: a layer is so narrow that its dtype cannot hold h / (N_total w_l), the force
            between two weights; the layer is named.
    """
    shared = [layer.scaled(1 / _total(layers)) for layer in layers]
    for layer in shared:
        scales = layer if layer.segments is None else layer.segments
        force = float((torch.as_tensor(scales.strength) / torch.as_tensor(scales.width)).max())
        if not force <= torch.finfo(layer.parameter.dtype).max:
            raise ValueError(
                f"layer '{layer.name}': its width {layer.width:g} is so small that the log "
                f"potential's force overflows {layer.parameter.dtype}; leave it out with exclude="
            )
    return shared


def _granularity(text: str, fft: bool) -> str:
    if check_granularity(text) != "layer" and fft:
        raise ValueError(f"granularity {text!r} requires method 'scan'; 'fft' is for whole layers")
    return text
