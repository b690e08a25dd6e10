"""The coupling of a model's weights, for any PyTorch training loop (Table I, steps 1 and 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq._arrays import check_bins, check_fraction, check_granularity, check_method, check_seed
from pysoftq.backends.plain import segment_energy
from pysoftq.clusters import Clusters, identify, refine, typical_size
from pysoftq.density import DEFAULT_BINS
from pysoftq.devices import DeviceGroup, MovedError, group_by_device
from pysoftq.inventory import take_inventory
from pysoftq.merging import Rate, merge
from pysoftq.potential import METHODS, mean_field_energy
from pysoftq.report import CompressionReport, LayerReport, TensorReport
from pysoftq.segment_table import Segments
from pysoftq.segments import segment_bounds
from pysoftq.selection import check_override, first_match, match_override, select, unwrapped

RULES = ("count", "levels", "entropy")  # of refinement
MAX_ALPHA = 10  # beyond that, h_l is 0 or inf for layers of any size


@dataclass(frozen=True, eq=False)
class CoupledLayer:
    """One layer and its interaction scales, measured once and then frozen.

    Attributes:
        name: of the parameter.
        size: number of weights N_l.
        sigma: population standard deviation of the weights when measured.
        width: range w_l = w · sigma_l, in units of the weights.
        strength: h_l = h · N_l^(-alpha).
        parameter: the weights themselves.
        segments: those that each interact with themselves alone, None where the layer is one; with
            them, sigma, width and strength are their means, weighted with their sizes.
    """

    name: str
    size: int
    sigma: float
    width: float
    strength: float
    parameter: nn.Parameter
    segments: Segments | None = None

    FIELDS: ClassVar = ("name", "size", "sigma", "width", "strength")

    def record(self) -> dict[str, Any]:
        """All but the weights as plain values; with segments, the scales of each as tensors."""
        record: dict[str, Any] = {field: getattr(self, field) for field in self.FIELDS}
        return record if self.segments is None else {**record, **self.segments.record()}


@dataclass(frozen=True)
class CouplingEnergy:
    """Compression loss L_C (Eq. 6, without self terms): in total and of each layer, times h_l."""

    total: float
    layers: dict[str, float]


class SoftQuantizer:
    """Couples the weights of each layer of a model by a short-range attraction (Eqs. 1-7).

    Measures N_l and sigma_l of each weight tensor now, and freezes w_l = w · sigma_l and
    h_l = h · N_l^(-alpha). Once attached, every `optimizer.step()` begins by adding h_l · dV/dtheta
    to the gradients (Eq. 7): after gradient clipping and unscaling, never per micro-batch. This is
    the paper's convention; the true gradient of Eq. 2 is twice as large, since ordered pairs
    count twice. The model and the optimizer stay yours and unchanged.

    Weights with two or more dimensions are coupled; biases and normalisation never. Tied weights
    count once; frozen parameters are left out, and a parameter without a gradient is skipped for
    the step. Constant layers and single weights cannot be coupled: a warning names them.

    With `granularity`, channels or groups of weights take the place of layers: each segment s has
    its own sigma_s, width w · sigma_s, strength h · N_s^(-alpha) and histogram, whose bins are
    in proportion to its weights, and interacts with itself alone.

    The force is computed where the weights are, and a model may move between devices at any time.
    A step on the CPU refuses weights that are not finite with a ValueError. Elsewhere a step never
    waits: it leaves out the force, and `check()` tells.

    Args:
        model: any module; compiled or data-parallel ones are looked into, sharded ones (FSDP)
            refused.
        h: strength of the interaction, 0 or more; 0 leaves training as it is, bit for bit.
        w: range of the interaction, in standard deviations of each layer.
        alpha: exponent of h_l = h · N_l^(-alpha).
        bins: number of bins N_b of each layer's histogram.
        method: "scan", exact window sums, or "fft", the convolution of the paper.
        fraction: share of the weights drawn into the histogram, in (0, 1]; may be set at any time.
        seed: of these draws; they depend on (seed, step, layer, position in memory) alone.
        granularity: what interacts with itself alone: "layer", "channel" (each slice of a weight
            along dimension 0) or "group:N" (each N consecutive weights within such a slice).
        include: shell-style patterns of parameter names to couple; None takes all weights.
        exclude: patterns to leave out, stronger than include.
        override: h, w or both for the layers that a pattern matches, `{"fc.*": {"w": 0.3}}`; of
            several patterns that match a layer, the first decides alone.

    Attributes:
        model: as given, or what it wraps.
        layers: the coupled layers, in model order.
        override: as given.
        excluded: why each other parameter is not coupled, by name.

    Raises:
        ValueError: a value is out of range, a pattern matches nothing, weights are not finite
            (layer and count are named), or nothing is left to couple.
    """

    def __init__(
        self,
        model: nn.Module,
        h: float = 0.01,
        w: float = 0.5,
        *,
        alpha: float = 0.66,
        bins: int = DEFAULT_BINS,
        method: str = "scan",
        fraction: float = 1.0,
        seed: int = 0,
        granularity: str = "layer",
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        override: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.h, self.w, self.alpha = _scales(h, w, alpha)
        self.override = check_override(override)
        self._bins = check_bins(bins)
        self._fft = check_method(method, METHODS)
        self._granularity = _granularity(granularity, self._fft)
        self._fraction = check_fraction(fraction)
        self.seed = check_seed(seed)
        self._step = 0
        self.model = unwrapped(model)
        self._handles: list[Any] = []

        chosen, self.excluded = select(self.model, include, exclude)
        scales = self._layer_scales(chosen)
        layers = []
        for name, parameter in chosen.items():
            layer = _measure(name, parameter, granularity, *scales[name], self.alpha)
            if layer is None:
                reason = _degeneracy(parameter, granularity)
                self.excluded[name] = f"degenerate: {reason}"
                warnings.warn(f"layer '{name}' is not coupled: {reason}", stacklevel=2)
                continue
            layers.append(layer)
            if left_out := _left_out(layer):
                warnings.warn(f"layer '{name}': {left_out}", stacklevel=2)
        self._couple(layers)
        if not self.layers:
            raise ValueError(f"the model has no weight to couple; left out: {self.excluded}")

    @property
    def bins(self) -> int:
        """Number of bins N_b of each layer's histogram."""
        return self._bins

    @property
    def method(self) -> str:
        """How the potential is computed, "scan" or "fft"."""
        return METHODS[self._fft]

    @property
    def granularity(self) -> str:
        """What interacts with itself alone: "layer", "channel" or "group:N"."""
        return self._granularity

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
        GPU is waited for once per step.

        Raises:
            ValueError: no optimizer is given, one is given twice, or a coupled layer belongs to
                none of them.
            RuntimeError: already attached.
        """
        if self._handles:
            raise RuntimeError("already attached: call detach() first")
        if not optimizers or len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
            raise ValueError("attach() takes one or more different optimizers")
        owned = [
            {id(p) for group in optimizer.param_groups for p in group["params"]}
            for optimizer in optimizers
        ]
        orphans = [
            layer.name
            for layer in self.layers
            if not any(id(layer.parameter) in ids for ids in owned)
        ]
        if orphans:
            raise ValueError(
                f"coupled layers that no given optimizer updates: {', '.join(orphans)}; "
                "leave them out with exclude=, or attach all optimizers in one call"
            )
        for optimizer, ids in zip(optimizers, owned, strict=True):
            indices = tuple(i for i, layer in enumerate(self.layers) if id(layer.parameter) in ids)
            self._handles.append(optimizer.register_step_pre_hook(self._hook(indices)))

    def detach(self) -> None:
        """Leave the optimizers alone again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

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

    def check(self) -> None:
        """Raise if a step was refused since the last check; waits for the device.

        On the CPU a step with weights that are not finite raises itself. Other devices go on
        without waiting: such a step leaves all their gradients without the force, and is reported
        here. Worth calling once per epoch.

        Raises:
            ValueError: naming layer and count, as in `add_force_`.
        """
        for groups in self._groups.values():
            for group in groups:
                group.coupling.check()

    def energy(self) -> CouplingEnergy:
        """Compression loss L_C = sum_l h_l sum_i V(theta_i), self terms left out (Eq. 6)."""
        energies = {layer.name: _energy(layer, self.bins) for layer in self.layers}
        return CouplingEnergy(math.fsum(energies.values()), energies)

    def prices(self, price: float) -> dict[str, float]:
        """What a bit for one weight is worth in each layer, in its weights squared.

        In proportion to sigma_l² N_l, and `price` sigma_l² for the layer that a weight lies in on
        average. So the sum over the layers of noise to signal, MSE_l / sigma_l², is the least that
        as many bits allow.
        """
        typical = typical_size([layer.size for layer in self.layers])
        return {
            layer.name: price * layer.sigma**2 * layer.size / typical if layer.size else 0.0
            for layer in self.layers
        }

    def bounds(self, layer: CoupledLayer) -> Tensor | None:
        """Where the layer's segments begin and end, (G+1,); None where the layer is one."""
        if layer.segments is None:
            return None
        return segment_bounds(layer.parameter.shape, self._granularity)

    def clusters(self, bits: int = 7, n_min: int | None = None) -> dict[str, Clusters]:
        """Clusters of each layer by binning, refined if `n_min` is given; nothing is written."""
        found = {
            layer.name: identify(layer.parameter, bits, self.bounds(layer)) for layer in self.layers
        }
        if n_min is None:
            return found
        return {name: refine(clusters, n_min) for name, clusters in found.items()}

    def refine(
        self,
        clusters: Mapping[str, Clusters],
        n_min: int = 10,
        rule: str = "count",
        price: float = 0.01,
    ) -> dict[str, Clusters]:
        """Fewer clusters of each layer; the arguments are those of `finalize`."""
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}; want one of {', '.join(RULES)}")
        if rule == "count":
            return {name: refine(found, n_min) for name, found in clusters.items()}
        rate: Rate = "entropy" if rule == "entropy" else "levels"
        prices = self.prices(price)
        return {name: merge(found, prices[name], rate) for name, found in clusters.items()}

    def finalize(
        self, bits: int = 7, n_min: int = 10, rule: str = "count", price: float = 0.01
    ) -> CompressionReport:
        """Write the refined clusters' values into the model (Table I, steps 3 and 4).

        Args:
            bits: clusters are the occupied ones of 2**bits equal bins of each layer.
            n_min: clusters of at most so many weights join the nearest larger one, by the rule
                "count", which is the paper's.
            rule: "levels" and "entropy" merge neighbouring clusters instead, wherever that costs
                less squared error than the bits are worth: those of plain indices, log2 K for each
                weight, or those of an entropy coder (`pysoftq.merging`).
            price: of a bit, for these; in variances of a layer when measured (`prices`).

        Returns:
            The table of layers, with clusters and bit-widths before and after refinement.

        Raises:
            ValueError: a value is out of range.
        """
        before = self.clusters(bits)
        after = self.refine(before, n_min, rule, price)
        with torch.no_grad():
            for layer in self.layers:
                parameter = layer.parameter
                parameter.copy_(after[layer.name].weights(parameter.shape))
        return CompressionReport(
            tuple(
                _row(layer, before[layer.name], after[layer.name], n_min if rule == "count" else 0)
                for layer in self.layers
            ),
            self.tensors(),
        )

    def tensors(self) -> tuple[TensorReport, ...]:
        """Every parameter and buffer of the model: coupled, excluded or degenerate, and why."""
        rules = {}
        for layer in self.layers:
            h, w = _asked_for(layer, self.alpha)
            pattern = first_match(self.override, layer.name)
            by = "" if pattern is None else f"override {pattern!r}: "
            rules[layer.name] = f"{by}h = {h:g}, w = {w:g}"
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
            "fraction": self.fraction,
            "seed": self.seed,
            "step": self.step,
            "override": [[pattern, dict(values)] for pattern, values in self.override.items()],
            "layers": [layer.record() for layer in self.layers],
            "excluded": dict(self.excluded),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, its frozen widths and strengths included. Call before `attach`.

        Raises:
            ValueError: a key is missing or a value out of range, or the model lacks a layer or has
                it in another size; nothing has changed then.
            RuntimeError: attached.
        """
        if self._handles:
            raise RuntimeError("attached to an optimizer: load the state before attach()")
        state = {"granularity": "layer", "override": [], **state}  # older ones have neither
        if missing := sorted(set(self.state_dict()) - set(state)):
            raise ValueError(f"the state lacks {', '.join(missing)}")
        fft = check_method(state["method"], METHODS)
        granularity = _granularity(state["granularity"], fft)
        fields = {*CoupledLayer.FIELDS, *(() if granularity == "layer" else Segments.FIELDS)}
        parameters = dict(self.model.named_parameters())
        layers = []
        for record in state["layers"]:
            if set(record) != fields:
                raise ValueError(f"a layer of the state has {sorted(record)}")
            parameter = parameters.get(record["name"])
            if parameter is None or parameter.numel() != record["size"]:
                found = "none" if parameter is None else f"{parameter.numel()} weights"
                raise ValueError(
                    f"the state has layer '{record['name']}' of {record['size']} weights; "
                    f"the model has {found}"
                )
            layers.append(_restored(record, parameter, granularity))
        if not layers:
            raise ValueError("the state has no layer")
        h, w, alpha = _scales(state["h"], state["w"], state["alpha"])
        bins, seed = check_bins(state["bins"]), check_seed(state["seed"])
        step = check_seed(state["step"], name="step")
        override = check_override(dict(state["override"]))
        self._fraction = check_fraction(state["fraction"])
        self._fft, self._bins, self.seed, self._step = fft, bins, seed, step
        self._granularity = granularity
        self.h, self.w, self.alpha, self.override = h, w, alpha, override
        self.excluded = dict(state["excluded"])
        self._couple(layers)

    def _layer_scales(self, names: Collection[str]) -> dict[str, tuple[float, float]]:
        """The h and w of each layer."""
        scales = dict.fromkeys(names, (self.h, self.w))
        for name, pattern in match_override(self.override, names).items():
            values = {"h": self.h, "w": self.w, **self.override[pattern]}
            try:
                scales[name] = _scales(values["h"], values["w"], self.alpha)[:2]
            except ValueError as error:
                raise ValueError(f"override {pattern!r}: {error}") from None
        return scales

    def _couple(self, layers: Sequence[CoupledLayer]) -> None:
        self.layers = tuple(layers)
        self._groups: dict[tuple[int, ...], list[DeviceGroup]] = {}

    def _hook(self, indices: tuple[int, ...]) -> Callable[..., Any]:
        def before_step(
            optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            # The first of a step's arguments is the optimizer itself.
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if closure is None:
                self._add_force(indices, _gradient_scale(optimizer))
                return None

            def closure_with_force() -> Any:
                loss = closure()
                self._add_force(indices, _gradient_scale(optimizer))
                return loss

            if "closure" in kwargs:
                return args, {**kwargs, "closure": closure_with_force}
            return (args[0], closure_with_force, *args[2:]), kwargs

        return before_step

    def _add_force(self, indices: tuple[int, ...], scale: float) -> None:
        step = self._step
        groups = self._groups.get(indices) or self._regroup(indices)
        try:
            batches = [group.collect() for group in groups]
        except MovedError:
            batches = [group.collect() for group in self._regroup(indices)]
        for batch in batches:
            batch.add_force(scale, self._fraction, self.seed, step)
        # What is recorded in a CUDA graph happens later; see advance().
        recorded = self.layers[0].parameter.is_cuda and torch.cuda.is_current_stream_capturing()
        if not recorded:
            self._step = step + 1

    def _tell_devices(self) -> None:
        for groups in self._groups.values():
            for group in groups:
                group.coupling.set(1.0, self._fraction, self.seed, self._step)

    def _regroup(self, indices: tuple[int, ...]) -> list[DeviceGroup]:
        for group in self._groups.pop(indices, ()):
            group.coupling.check()
        strong = [index for index in indices if self.layers[index].strength > 0]
        self._groups[indices] = group_by_device(self.layers, strong, self.bins, self._fft)
        return self._groups[indices]

    def __getstate__(self) -> dict[str, Any]:
        # Groups know their parameters; a copy's are others.
        return {**self.__dict__, "_groups": {}}


def _gradient_scale(optimizer: Optimizer) -> float:
    # Fused optimizers get the scale from the GradScaler and unscale inside their step.
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _scales(h: float, w: float, alpha: float) -> tuple[float, float, float]:
    if not (math.isfinite(h) and h >= 0):
        raise ValueError(f"h must be finite and at least 0, not {h}")
    if not (math.isfinite(w) and w > 0):
        raise ValueError(f"w must be finite and above 0, not {w}")
    if not abs(alpha) <= MAX_ALPHA:
        raise ValueError(f"alpha must be from {-MAX_ALPHA} to {MAX_ALPHA}, not {alpha}")
    return float(h), float(w), float(alpha)


def _granularity(text: str, fft: bool) -> str:
    if check_granularity(text) != "layer" and fft:
        raise ValueError(
            f"granularity {text!r} wants method 'scan': 'fft' is the paper's way, for whole layers"
        )
    return text


def _measure(
    name: str, parameter: nn.Parameter, granularity: str, h: float, w: float, alpha: float
) -> CoupledLayer | None:
    """The layer with its scales; None if nothing of it can be coupled."""
    weights = parameter.detach().cpu().double()
    size = weights.numel()
    bad = int((~torch.isfinite(weights)).sum())
    if bad:
        raise ValueError(f"layer '{name}': {bad} of {size} weights are not finite (NaN or inf)")
    if granularity != "layer":
        segments = Segments.measure(weights, granularity, h, w, alpha)
        if not len(segments.number):
            return None
        return _segmented(name, parameter, segments)
    if size < 2 or weights.min() == weights.max():
        return None
    sigma = float(weights.std(correction=0))
    return CoupledLayer(name, size, sigma, w * sigma, h * size**-alpha, parameter)


def _segmented(name: str, parameter: nn.Parameter, segments: Segments) -> CoupledLayer:
    mean = segments.mean
    sigma, width, strength = mean(segments.sigma), mean(segments.width), mean(segments.strength)
    return CoupledLayer(name, parameter.numel(), sigma, width, strength, parameter, segments)


def _restored(record: dict[str, Any], parameter: nn.Parameter, granularity: str) -> CoupledLayer:
    if granularity == "layer":
        return CoupledLayer(**record, parameter=parameter)
    segments = Segments.restore(record, parameter.shape, granularity)
    return _segmented(record["name"], parameter, segments)


def _asked_for(layer: CoupledLayer, alpha: float) -> tuple[float, float]:
    """The h and w that gave the layer's scales."""
    w, segments = layer.width / layer.sigma, layer.segments
    if segments is None:
        return layer.strength * layer.size**alpha, w
    return float(segments.strength[0]) * int(segments.size[0]) ** alpha, w


def _energy(layer: CoupledLayer, bins: int) -> float:
    if layer.segments is None:
        return layer.strength * mean_field_energy(layer.parameter, layer.width, bins)
    return segment_energy(layer, bins)


def _degeneracy(parameter: nn.Parameter, granularity: str) -> str:
    size = parameter.numel()
    if size < 2:
        return f"it has {size or 'no'} weight"
    where = "" if granularity == "layer" else f" of each segment ({granularity})"
    return f"all {size} weights{where} are equal"


def _left_out(layer: CoupledLayer) -> str:
    """What of the layer is not coupled, in words."""
    if layer.segments is None or not layer.segments.degenerate:
        return ""
    return (
        f"{layer.segments.degenerate} of {layer.segments.total} segments are not coupled: "
        "their weights are equal, or only one"
    )


def _row(layer: CoupledLayer, before: Clusters, after: Clusters, n_min: int) -> LayerReport:
    notes = [_left_out(layer)]
    if not (before.counts > n_min).any():
        notes.append(f"not refined: no cluster has more than {n_min} weights")
    return LayerReport(
        layer.name,
        layer.size,
        layer.sigma,
        layer.width,
        layer.strength,
        clusters_before=before.K,
        bits_before=before.bits,
        clusters=after.K,
        bits=after.bits,
        entropy_bits=after.entropy_bits,
        note="; ".join(filter(None, notes)),
        segments=after.segments,
        degenerate_segments=0 if layer.segments is None else layer.segments.degenerate,
        codebook_bytes=after.codebook_bytes,
    )
