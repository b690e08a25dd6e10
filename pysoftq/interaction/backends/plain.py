"""The contract in torch operations only, for all devices: MPS, ROCm, XPU, CUDA without kernels.

Written to be read and to be right; the coupling step never waits for the device. What is binned is
a batch (B, N): a layer as one row, or segments of one size as several.

Counts and integer forces are those of the core. A device without float64 (MPS) computes in float32
what is float64 elsewhere: potentials and energies come out in float32, scaled forces are rounded
once more, and a bin whose midpoint lies within rounding of the well's edge may fall to its other
side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pysoftq.interaction.backends.deferred import DeferredRefusals
from pysoftq.interaction.pieces import Extremes
from pysoftq.interaction.segment_table import SegmentTable

if TYPE_CHECKING:
    from pysoftq.interaction.layers import CoupledLayer

MAX_WEIGHTS = 2**31 - 1  # of a layer, as in the core
MAX_COUNTS = 2**22  # bins of the segments that are looked at together
TILE = 2048  # rows and columns of the direct sum at a time

GAMMA = 0x9E3779B97F4A7C15  # SplitMix64: the step of its counter, then its shifts and factors
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def pair_energy(theta: Tensor, width: float, direct: bool) -> float:
    """Energy of all pairs (Eq. 2): from the gaps between sorted weights, or tile by tile."""
    x = _finite(theta)
    if direct:
        total = x.new_zeros(())
        for rows in x.split(TILE):
            for columns in x.split(TILE):
                total += ((rows[:, None] - columns).abs() - width).clamp(max=0).sum()
        return float(total) + width * x.numel()  # without the self terms
    x = x.sort().values
    low, high = _neighbours(x, width)
    place = torch.arange(x.numel(), device=x.device)
    below, above = place - low, high - place - 1
    # Pairs that straddle the gap behind each weight. All terms are positive: nothing cancels.
    straddling = (above - below).cumsum(0)[:-1]
    gaps = torch.where(straddling > 0, x.diff(), 0)
    return 2 * (float((gaps * straddling).sum()) - width * int(below.sum()))


def pair_force(theta: Tensor, width: float, direct: bool) -> Tensor:
    """Exact force on each weight, int64 (N,)."""
    x = _finite(theta)
    force = torch.zeros(x.numel(), dtype=torch.int64, device=x.device)
    if direct:
        for rows, out in zip(x.split(TILE), force.split(TILE), strict=True):
            for columns in x.split(TILE):
                d = rows[:, None] - columns
                out.add_((d.sign() * (d.abs() < width)).sum(1).to(torch.int64))
        return force
    x, order = x.sort()
    low, high = _neighbours(x, width)
    tie, tie_end = torch.searchsorted(x, x), torch.searchsorted(x, x, right=True)
    force[order] = (tie - low) - (high - tie_end)
    return force


def pair_occupancy(theta: Tensor, width: float, direct: bool) -> Tensor:
    """|V| / width at each weight: the depths of all weights in its well, added up."""
    x = _finite(theta)
    # A power of two, which changes no rounding: a well is about as deep as 1.
    unit = math.ldexp(1.0, min(max(1 - math.frexp(width)[1], -1022), 1023))
    if direct:
        depth = torch.zeros_like(x)
        for rows, out in zip(x.split(TILE), depth.split(TILE), strict=True):
            for columns in x.split(TILE):
                out.add_((unit * (width - (rows[:, None] - columns).abs()).clamp(min=0)).sum(1))
        return depth / (unit * width)
    x, order = x.sort()
    low, high = _neighbours(x, width)
    place, size = torch.arange(x.numel(), device=x.device), x.numel()
    below = _depths(x, low, place + 1, width, unit)
    above = _depths(-x.flip(0), (size - high).flip(0), place, width, unit)
    occupancy = torch.empty_like(x)
    occupancy[order] = ((below + above.flip(0)) / (unit * width)).clamp(min=1)
    return occupancy


def density(
    theta: Tensor, bins: int, fraction: float, seed: int
) -> tuple[Tensor, float, float, float]:
    """Counts, low, high and spacing (Eq. 4)."""
    x, binning = _binned(theta, bins)
    low, high = float(binning.low), float(binning.high)
    spacing = (high - low) / bins
    place = torch.arange(x.numel(), device=x.device)
    counts = _counts(binning.index(x), bins, _sample(place, fraction, seed, 0, 0))
    return counts[0], low, high, spacing


def potential(counts: Tensor, spacing: float, width: float, fft: bool) -> Tensor:
    """V at the midpoints of the bins (Eq. 5)."""
    wide = _wide(counts.device)
    step = torch.tensor([[spacing]], dtype=wide, device=counts.device)
    if fft:
        return _convolve(counts[None], step, width)[0, 1:-1]
    population, moment = _windows(counts[None], step, width)
    return (spacing * moment.to(wide) - width * population.to(wide))[0]


def mean_field_energy(counts: Tensor, spacing: float, width: float, log: bool = False) -> float:
    """Energy of the binned weights, without the self terms (Eq. 6); with `log`, nats."""
    step = torch.tensor([[spacing]], dtype=_wide(counts.device), device=counts.device)
    return float(_energies(counts[None], step, width, log))


def force_table(counts: Tensor, spacing: float, width: float, fft: bool) -> Tensor:
    """dV/dtheta at the midpoints of the bins."""
    step = torch.tensor([[spacing]], dtype=_wide(counts.device), device=counts.device)
    return _force_table(counts[None], step, width, _Pull(), fft)[0]


def force(theta: Tensor, width: float, bins: int, fft: bool, log: bool = False) -> Tensor:
    """dV/dtheta of each weight (Eq. 7, without h); with `log`, over |V|."""
    x, binning = _binned(theta, bins)
    index = binning.index(x)
    pull = _Pull(log=log)
    table = _force_table(_counts(index, bins, None), binning.spacing, width, pull, fft)
    return table.to(x.dtype).gather(1, index)[0]


class Coupling(DeferredRefusals):
    """The layers of one device; the first refused step is remembered there until `check` asks."""

    def __init__(
        self,
        layers: Sequence[CoupledLayer],
        indices: Sequence[int],
        bins: int,
        fft: bool,
        log: bool = False,
    ) -> None:
        self._table = SegmentTable.of(layers, bins)
        self._indices = tuple(indices)
        self._fft, self._log = fft, log
        device = layers[0].parameter.device
        self._device = device
        whole, shared = self._table.whole, self._table.pieces
        places = range(len(layers))
        self._batches = [_batches(self._table, whole, place, device) for place in places]
        self._pieces = [_batches(self._table, shared, place, device) for place in places]
        self._heads = [int((self._table.layer < place).sum()) for place in places]
        # Where the counts of each row begin, among those of the shared ones.
        slots = torch.where(self._table.shared, self._table.bins, 0)
        self._slots = int(slots.sum())
        self._first_slot = (slots.cumsum(0) - slots).to(device)
        self._number = (self._table.shared.cumsum(0) - 1).to(device)
        self._judged: Tensor | None = None  # faults that all processes have found in this step
        self._faults = torch.zeros(len(self._table.layer), 4, dtype=_wide(device), device=device)

    @torch.no_grad()
    def add_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        scale: float,
        fraction: float,
        seed: int,
        step: int,
    ) -> None:
        """Gradient += scale · h_l · dV/dtheta for each layer that has a gradient."""
        active = []
        faults = torch.zeros_like(self._faults)
        for place, (theta, gradient) in enumerate(zip(thetas, gradients, strict=True)):
            if gradient is None:
                continue
            x, g = _compute(_flat(theta)), _flat(gradient)
            for batch in self._batches[place]:
                weights = batch.of(x)
                binning = _Binning.of(weights, batch.bins)
                faults[batch.rows] = binning.fault().to(faults.dtype)
                active.append((self._indices[place], batch, weights, binning, g))
        if self._judged is not None:
            faults = torch.where(faults.any(1, keepdim=True), faults, self._judged)
        fine = (faults == 0).all()
        self._faults = torch.where((self._faults == 0).all(), faults, self._faults)
        for layer, batch, weights, binning, gradient in active:
            index = binning.index(weights)
            keep = _sample(batch.position, fraction, seed, step, layer)
            counts = _counts(index, batch.bins, keep)
            pull = _Pull(batch.strength * scale, fraction, self._log)
            table = _force_table(counts, binning.spacing, batch.width, pull, self._fft)
            before = batch.of(gradient)
            total = before.to(weights.dtype) + table.to(weights.dtype).gather(1, index)
            batch.put(gradient, torch.where(fine, total.to(gradient.dtype), before))

    @torch.no_grad()
    def energies(self, thetas: Sequence[Tensor]) -> list[float]:
        """Strength times energy of each layer, or ValueError naming layers and reasons."""
        faults = torch.zeros_like(self._faults)
        energies = faults.new_zeros(len(faults))
        for theta, batches in zip(thetas, self._batches, strict=True):
            x = _compute(_flat(theta))
            for batch in batches:
                weights = batch.of(x)
                binning = _Binning.of(weights, batch.bins)
                faults[batch.rows] = binning.fault().to(faults.dtype)
                counts = _counts(binning.index(weights), batch.bins, None)
                found = _energies(counts, binning.spacing, batch.width, self._log)
                energies[batch.rows] = (batch.strength * found)[:, 0]
        self._refuse(faults.cpu())
        return self._table.sums(energies.cpu().double())

    @torch.no_grad()
    def extremes(self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Extremes:
        """Of the weights in this process."""
        has = [gradient is not None for gradient in gradients]
        layers = self._faults.new_zeros(len(thetas), 2)
        layers[:, 1] = layers.new_tensor(has)
        rows = layers.new_full((len(self._table.pieces), 2), -torch.inf)
        for place, theta in enumerate(thetas):
            x = _compute(_flat(theta))
            for batch in self._batches[place] if has[place] else ():
                fault = _Binning.of(batch.of(x), batch.bins).fault()
                layers[place, 0] = torch.maximum(layers[place, 0], fault.any().to(layers.dtype))
            for batch in self._pieces[place]:
                if not batch.size:
                    continue
                weights = batch.of(x)
                low, high = (values.to(rows.dtype) for values in weights.aminmax(dim=1))
                bad = ~weights.isfinite().all(1, keepdim=True)
                found = torch.stack([high, -low], dim=1)
                rows[self._number[batch.rows]] = found.masked_fill(bad, torch.inf)
        return Extremes(layers, rows)

    @torch.no_grad()
    def counts(
        self, thetas: Sequence[Tensor], extremes: Extremes, fraction: float, seed: int, step: int
    ) -> Tensor:
        """Of the shared rows, int32, row after row; zeros where the layer has no gradient."""
        self._judged = self._faults_of(extremes)
        found = torch.zeros(self._slots, dtype=torch.int32, device=self._device)
        for place, theta in enumerate(thetas):
            x, piece = _compute(_flat(theta)), self._table.layers[place].piece
            if piece is None or not piece.first:
                continue
            for batch in self._pieces[place]:
                weights = batch.of(x)
                index = self._binning(batch, extremes, x.dtype).index(weights)
                position = piece.position(batch.place)
                keep = _sample(position, fraction, seed, step, self._indices[place])
                counts = _counts(index, batch.bins, keep)
                found[self._slots_of(batch)] = (counts * (extremes.layers[place, 1] > 0)).int()
        return found

    @torch.no_grad()
    def add_shared_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        extremes: Extremes,
        counts: Tensor,
        scale: float,
        fraction: float,
    ) -> None:
        """From the extremes and counts of all processes."""
        fine = (self._faults_of(extremes) == 0).all()
        self._judged = None
        for place, (theta, gradient) in enumerate(zip(thetas, gradients, strict=True)):
            if gradient is None:
                continue
            x, g = _compute(_flat(theta)), _flat(gradient)
            for batch in self._pieces[place]:
                weights = batch.of(x)
                binning = self._binning(batch, extremes, x.dtype)
                pull = _Pull(batch.strength * scale, fraction, self._log)
                own = counts[self._slots_of(batch)].long()
                table = _force_table(own, binning.spacing, batch.width, pull, self._fft)
                before = batch.of(g)
                force = table.to(weights.dtype).gather(1, binning.index(weights))
                total = (before.to(weights.dtype) + force).to(g.dtype)
                batch.put(g, torch.where(fine, total, before))

    @torch.no_grad()
    def row_energies(
        self, thetas: Sequence[Tensor], extremes: Extremes, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R,) of the rows that this process reports, and (R,) of the shared ones; else 0."""
        self._judged = None
        self._refuse(self._faults_of(extremes).cpu())
        own = self._faults.new_zeros(len(self._table.layer))
        shared = own.clone()
        for place, (theta, layer) in enumerate(zip(thetas, self._table.layers, strict=True)):
            x = _compute(_flat(theta))
            for batch in self._batches[place] if layer.piece is None or layer.piece.first else ():
                weights = batch.of(x)
                binning = _Binning.of(weights, batch.bins)
                inside = _counts(binning.index(weights), batch.bins, None)
                found = _energies(inside, binning.spacing, batch.width, self._log)
                own[batch.rows] = (batch.strength * found)[:, 0]
            for batch in self._pieces[place]:
                binning = self._binning(batch, extremes, x.dtype)
                all_counts = counts[self._slots_of(batch)].long()
                found = _energies(all_counts, binning.spacing, batch.width, self._log)
                shared[batch.rows] = (batch.strength * found)[:, 0]
        return own.cpu().double(), shared.cpu().double()

    def row_sums(self, energies: Tensor) -> list[float]:
        """The energy of each layer."""
        return self._table.sums(energies.numpy())

    def _binning(self, batch: _Batch, extremes: Extremes, dtype: torch.dtype) -> _Binning:
        """The bins of shared rows, from the extremes of all processes."""
        high, negated = extremes.rows[self._number[batch.rows]].to(dtype).split(1, dim=1)
        return _Binning.over(-negated, high, batch.bins)

    def _slots_of(self, batch: _Batch) -> Tensor:
        """(B, bins), where the counts of shared rows are among those of all."""
        return self._first_slot[batch.rows][:, None] + torch.arange(batch.bins, device=self._device)

    def _faults_of(self, extremes: Extremes) -> Tensor:
        """What all processes have found, as `_Binning.fault`, (R, 4); of a layer at its first row.

        Numbers of weights that are not finite are not known: their extremes are infinite.
        """
        faults = torch.zeros_like(self._faults)
        refused = faults.new_tensor([0, -torch.inf, torch.inf, 1])
        active = extremes.layers[:, 1] > 0
        for place, layer in enumerate(self._table.layers):
            unfit = (extremes.layers[place, 0] > 0) & active[place]
            faults[self._heads[place]] = torch.where(unfit, refused, 0)
            for batch in self._pieces[place]:
                binning = self._binning(batch, extremes, _computed(layer.parameter.dtype))
                fault = binning.fault().to(faults.dtype)
                faults[batch.rows] = torch.where(active[place], fault, 0)
        return faults

    def set(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """Do nothing: each step has its own arguments, which a captured step would repeat."""

    def recorded(self) -> bool:
        """Whether the current stream of the device is recorded into a CUDA graph."""
        if self._faults.device.type != "cuda":
            return False
        with torch.cuda.device(self._faults.device):  # torch asks for the current device's
            return torch.cuda.is_current_stream_capturing()

    def check(self) -> None:
        """Raise ValueError naming layers and reasons if a step was refused since the last check."""
        faults = self._faults.cpu()
        self._faults = torch.zeros_like(self._faults)
        self._refuse(faults)

    def _refuse(self, faults: Tensor) -> None:
        """Raise ValueError naming the layers whose rows (R, 4) of faults are not all zero."""
        refused = []
        for row in faults.any(1).nonzero().flatten().tolist():
            dtype = self._table.layers[int(self._table.layer[row])].parameter.dtype
            reason = _reason(faults[row].tolist(), int(self._table.size[row]), dtype)
            refused.append((row, reason))
        if refused:
            raise ValueError(self._table.explain(refused))


@dataclass(frozen=True)
class _Batch:
    """Segments of one layer that have one size, on its device: their rows of the table.

    begin (B, 1): where they are in this process, start (B, 1): in the layer. width and strength:
    (B, 1). first: where they all begin, if they lie one behind the other, else None.
    """

    rows: Tensor
    begin: Tensor
    start: Tensor
    size: int
    bins: int
    width: Tensor
    strength: Tensor
    first: int | None

    @property
    def place(self) -> Tensor:
        """(B, N), of the weights among those of the layer in this process."""
        return self.begin + torch.arange(self.size, device=self.begin.device)

    @property
    def position(self) -> Tensor:
        """(B, N), of weights in the layer, of segments that one process holds in whole."""
        return self.start + torch.arange(self.size, device=self.begin.device)

    def of(self, x: Tensor) -> Tensor:
        """(B, N), what a layer's flat tensor has at these places."""
        if self.first is None:
            return x[self.place]
        return x[self.first : self.first + len(self.rows) * self.size].view(
            len(self.rows), self.size
        )

    def put(self, x: Tensor, values: Tensor) -> None:
        """Write there."""
        if self.first is None:
            x[self.place] = values
        else:
            self.of(x).copy_(values)


def _batches(table: SegmentTable, among: Tensor, layer: int, device: torch.device) -> list[_Batch]:
    """Segments of a layer, so many at a time that their bins take little memory.

    among: rows of the table.
    """
    rows = among[table.layer[among] == layer]
    batches = []
    kinds = torch.stack([table.size[rows], table.bins[rows]], dim=1)
    for size, bins in kinds.unique(dim=0).tolist() if len(rows) else ():
        alike = rows[(kinds == torch.tensor([size, bins])).all(1)]
        for part in alike.split(max(MAX_COUNTS // bins, 1)):
            begin = table.begin[part]
            first = int(begin[0]) if bool((begin.diff() == size).all()) else None
            width, strength = (
                values[part, None].to(device=device, dtype=_wide(device))
                for values in (table.width, table.strength)
            )
            own = (size, bins, width, strength, first)
            start = table.position[part, None].to(device)
            batches.append(_Batch(part.to(device), begin[:, None].to(device), start, *own))
    return batches


NARROW_FACTOR = {torch.float32: 2.0**96, torch.float64: 2.0**600}  # as in cpp: binning.h


@dataclass(frozen=True)
class _Binning:
    """The bins of each row, all but their number (B, 1) on the device; `inverse` 0 for a point.

    Where bins / range overflows, `factor` is a power of two that the weights are multiplied with
    first, else 1.
    """

    factor: Tensor
    low: Tensor
    high: Tensor
    inverse: Tensor
    spacing: Tensor
    bins: int
    nonfinite: Tensor

    @classmethod
    def of(cls, x: Tensor, bins: int) -> _Binning:
        some = x.shape[1] > 0
        low, high = x.aminmax(dim=1, keepdim=True) if some else (x.new_zeros(len(x), 1),) * 2
        return cls.over(low, high, bins, (~x.isfinite()).sum(1, keepdim=True))

    @classmethod
    def over(
        cls, low: Tensor, high: Tensor, bins: int, nonfinite: Tensor | None = None
    ) -> _Binning:
        """Over ranges (B, 1), of which `nonfinite` weights are unfit, 0 if it is not given."""
        wide = _wide(low.device)
        # Divided by tensors: torch multiplies by the reciprocal where it is given a number.
        number = low.new_full((), bins)
        narrow = (high > low) & (number / (high - low)).isinf()
        factor = torch.where(narrow, low.new_full((), NARROW_FACTOR[low.dtype]), 1)
        inverse = number / (high * factor - low * factor)
        spacing = (high.to(wide) - low.to(wide)) / torch.full_like(low, bins, dtype=wide)
        fine = spacing > 0
        return cls(
            factor,
            low,
            high,
            torch.where(fine, inverse, 0),
            torch.where(fine, spacing, 0),
            bins,
            torch.zeros_like(low, dtype=torch.int64) if nonfinite is None else nonfinite,
        )

    def index(self, x: Tensor) -> Tensor:
        """The bin of each weight, in range even where the weights are refused."""
        offset = x * self.factor - self.low * self.factor
        return (offset * self.inverse).to(torch.int64).clamp(0, self.bins - 1)

    def fault(self) -> Tensor:
        """What makes the rows unfit (B, 4): how many are not finite, low, high, range overflows.

        All zero where nothing does.
        """
        overflow = ~(self.high - self.low).isfinite()
        fault = torch.cat([self.nonfinite, self.low, self.high, overflow], dim=1)
        return torch.where((self.nonfinite > 0) | overflow, fault, 0)


def _binned(theta: Tensor, bins: int) -> tuple[Tensor, _Binning]:
    """The weights as they are computed with (1, N), and their bins; ValueError if unfit."""
    _check_size(theta)
    x = _compute(theta)[None]
    binning = _Binning.of(x, bins)
    fault = binning.fault()[0].tolist()
    if any(fault):
        raise ValueError(_reason(fault, x.numel(), x.dtype))
    return x, binning


def _check_size(theta: Tensor) -> None:
    if theta.numel() > MAX_WEIGHTS:
        raise ValueError(f"a layer has at most {MAX_WEIGHTS} weights, got {theta.numel()}")


def _reason(fault: Sequence[float], size: int, dtype: torch.dtype) -> str:
    nonfinite, low, high, _ = fault
    if math.isinf(high) and not nonfinite:  # found by all processes together
        return f"some of {size} weights are not finite (NaN or inf)"
    if nonfinite:
        return f"{nonfinite:.0f} of {size} weights are not finite (NaN or inf)"
    bits = 64 if dtype == torch.float64 else 32
    return f"the range of the weights, {low:g} to {high:g}, is wider than float{bits} can hold"


def _finite(theta: Tensor) -> Tensor:
    """The weights as differences are taken of them; ValueError unless all are finite."""
    _check_size(theta)
    nonfinite = int((~theta.isfinite()).sum())
    if nonfinite:
        raise ValueError(_reason((nonfinite, 0, 0, 0), theta.numel(), theta.dtype))
    return theta.to(_wide(theta.device))


def _counts(index: Tensor, bins: int, keep: Tensor | None) -> Tensor:
    ones = torch.ones_like(index) if keep is None else keep.expand_as(index)
    return ones.new_zeros(len(index), bins).scatter_add_(1, index, ones)


def _energies(counts: Tensor, spacing: Tensor, width: float | Tensor, log: bool) -> Tensor:
    """Energy of each row without self terms (B, 1); with `log`, the length of its code in nats."""
    weights = counts.to(_wide(counts.device))
    if log:
        shares = weights.sum(1, keepdim=True) / _occupancy(counts, spacing, width, 1.0)
        return torch.where(counts > 0, weights * shares.log(), 0).sum(1, keepdim=True)
    population, moment = _windows(counts, spacing, width)
    distance = (weights * moment).sum(1, keepdim=True)
    pairs = (weights * (population - 1)).sum(1, keepdim=True)
    return spacing * distance - width * pairs


def _sample(place: Tensor, fraction: float, seed: int, step: int, layer: int) -> Tensor | None:
    """1 for each weight drawn and 0 for the others, int64; None if all are (cpp: sampling.h).

    place: of the weights in their layer.
    """
    threshold = int(fraction * 2**32)
    if threshold >= 2**32:
        return None
    key = _splitmix64(_splitmix64(seed, step), layer)
    # int64 products wrap around as uint64 ones do; a logical shift masks the sign's copies.
    z = (place + 1) * _signed(GAMMA) + _signed(key)
    for shift, factor in MIX:
        z = (z ^ (z >> shift & 2 ** (64 - shift) - 1)) * _signed(factor)
    z ^= z >> 31 & 2**33 - 1
    return ((z >> 32 & 2**32 - 1) < threshold).to(torch.int64)


def _splitmix64(key: int, n: int) -> int:
    z = (key + (n + 1) * GAMMA) % 2**64
    for shift, factor in MIX:
        z = (z ^ z >> shift) * factor % 2**64
    return z ^ z >> 31


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _reach(width: float | Tensor, spacing: Tensor, bins: int) -> Tensor:
    """The largest m < bins with m · spacing < width; the products decide, not the quotient."""
    most = bins - 1
    m = (torch.zeros_like(spacing).add(width) / spacing).clamp(max=most).to(torch.int64)
    m = torch.where((m > 0) & (m * spacing >= width), m - 1, m)
    return torch.where((m + 1) * spacing < width, m + 1, m).clamp(max=most)


def _prefix(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(len(values), 1), values.cumsum(1)], dim=1)


def _windows(counts: Tensor, spacing: Tensor, width: float | Tensor) -> tuple[Tensor, Tensor]:
    """Population and first moment of the window around each bin, int64."""
    bins = counts.shape[1]
    k = torch.arange(bins, device=counts.device).expand_as(counts)
    m = _reach(width, spacing, bins)
    first, last = (k - m).clamp(min=0), (k + m + 1).clamp(max=bins)
    population, moment = _prefix(counts), _prefix(k * counts)
    inside = population.gather(1, last) - population.gather(1, first)
    below = population[:, :-1] - population.gather(1, first)
    above = population.gather(1, last) - population[:, :-1]
    left = k * below - (moment[:, :-1] - moment.gather(1, first))
    right = (moment.gather(1, last) - moment[:, :-1]) - k * above
    return inside, left + right


def _occupancy(counts: Tensor, spacing: Tensor, width: float | Tensor, fraction: float) -> Tensor:
    """|V| / width on the midpoints of the bins, of counts of a fraction (cpp: pull.h)."""
    wide, reach = _wide(counts.device), _reach(width, spacing, counts.shape[1])
    population, moment = _windows(counts, spacing, width)
    ratio = torch.where(reach > 0, spacing / width, 0)
    return (population.to(wide) - ratio * moment.to(wide)).clamp(min=fraction)


class _Pull(NamedTuple):
    """Strength of a force, linear or log; the counts are those of a fraction of the weights."""

    strength: float | Tensor = 1.0
    fraction: float = 1.0
    log: bool = False

    def scale(self, width: float | Tensor) -> float | Tensor:
        """Of the integer force."""
        return self.strength / width if self.log else self.strength / self.fraction


def _force_table(
    counts: Tensor, spacing: Tensor, width: float | Tensor, pull: _Pull, fft: bool
) -> Tensor:
    """Strength · dV/dtheta on the midpoints of the bins; 0 if all weights are at one point.

    With the log potential, over |V|.
    """
    bins, wide, scale = counts.shape[1], _wide(counts.device), pull.scale(width)
    if fft:
        v = _convolve(counts, spacing, width)
        rise = v[:, 2:] - v[:, :-2]
        if pull.log:
            occupancy = (-v[:, 1:-1] / width).clamp(min=pull.fraction)
            table = scale * (rise / (2 * spacing) / occupancy)
        else:
            table = scale * rise / (2 * spacing)
    else:
        k = torch.arange(bins, device=counts.device).expand_as(counts)
        m = _reach(width, spacing, bins)
        prefix = _prefix(counts)
        below = prefix[:, :-1] - prefix.gather(1, (k - m).clamp(min=0))
        above = prefix.gather(1, (k + m + 1).clamp(max=bins)) - prefix[:, 1:]
        slope = (below - above).to(wide)
        if pull.log:
            slope = slope / _occupancy(counts, spacing, width, pull.fraction)
        table = scale * slope
    return torch.where(spacing > 0, table, 0)


def _convolve(counts: Tensor, spacing: Tensor, width: float | Tensor) -> Tensor:
    """V on the midpoints -1 … bins, by FFTs so long that nothing wraps around."""
    bins = counts.shape[1]
    length = 2 ** (2 * bins).bit_length()
    d = torch.arange(length, device=counts.device)
    well = (torch.minimum(d, length - d) * spacing - width).clamp(max=0)
    signal = torch.fft.rfft(counts.to(well.dtype), n=length)
    v = torch.fft.irfft(signal * torch.fft.rfft(well), n=length)
    return torch.cat([v[:, -1:], v[:, : bins + 1]], dim=1)


def _neighbours(x: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """For each of the sorted weights, where those closer than width begin and end.

    A binary search for all at once, on the differences themselves, so that rounding decides as in
    the core.
    """
    place = torch.arange(x.numel(), device=x.device)
    low = _first(lambda j: x - x[j] < width, torch.zeros_like(place), place)
    high = _first(lambda j: x[j] - x >= width, place + 1, torch.full_like(place, x.numel()))
    return low, high


def _depths(x: Tensor, begin: Tensor, end: Tensor, width: float, unit: float) -> Tensor:
    """How deep the weights [begin, end) are in the well of each, added up, times `unit`.

    The weights ascend, and those in each range are not above its own one. A range is made of the
    largest blocks of 2, 4, 8, … weights. Depths in a block are that of its first weight and the
    distances from that: all terms are positive.
    """
    total, first, spread, count = torch.zeros_like(x), x, torch.zeros_like(x), 1.0

    def add(block: Tensor, chosen: Tensor) -> None:
        at = block.clamp(max=len(first) - 1)
        depth = count * (unit * (width - (x - first[at]))) + spread[at]
        total.add_(torch.where(chosen, depth, 0))

    while len(first):
        odd = (begin < end) & (begin % 2 == 1)
        add(begin, odd)
        begin = begin + odd
        odd = (begin < end) & (end % 2 == 1)
        end = end - odd.long()
        add(end, odd)
        begin, end = begin // 2, end // 2
        pairs = len(first) // 2 * 2
        left, right = first[:pairs:2], first[1:pairs:2]
        spread = spread[:pairs:2] + spread[1:pairs:2] + count * (unit * (right - left))
        first, count = left, 2 * count
    return total


def _first(holds: Callable[[Tensor], Tensor], begin: Tensor, end: Tensor) -> Tensor:
    """The first place in each [begin, end) from which on a condition holds, else its end."""
    size = begin.numel()
    for _ in range(size.bit_length()):
        middle = (begin + end) // 2
        found = holds(middle.clamp(max=size - 1))
        searching = begin < end
        end = torch.where(searching & found, middle, end)
        begin = torch.where(searching & ~found, middle + 1, begin)
    return begin


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order of its memory, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _compute(theta: Tensor) -> Tensor:
    return theta.to(_computed(theta.dtype))


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
