"""The contract in torch operations alone, for all devices: MPS, ROCm, XPU, CUDA without kernels.

Written to be read and to be right, layer by layer; the coupling step never waits for the device.
Counts and integer forces are those of the core. A device without float64 (MPS) computes in float32
what is float64 elsewhere: potentials and energies come out in float32, scaled forces are rounded
once more, and a bin whose midpoint lies within rounding of the well's edge may fall to its other
side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pysoftq.coupling import CoupledLayer

MAX_WEIGHTS = 2**31 - 1  # of a binned layer, as in the core
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


def density(
    theta: Tensor, bins: int, fraction: float, seed: int
) -> tuple[Tensor, float, float, float]:
    """Counts, low, high and spacing (Eq. 4)."""
    x, binning = _binned(theta, bins)
    low, high = float(binning.low), float(binning.high)
    spacing = (high - low) / bins if binning.inverse else 0.0
    counts = _counts(binning.index(x), bins, _sample(x, fraction, seed, 0, 0))
    return counts, low, high, spacing


def potential(counts: Tensor, spacing: float, width: float, fft: bool) -> Tensor:
    """V at the midpoints of the bins (Eq. 5)."""
    wide = _wide(counts.device)
    step = torch.tensor(spacing, dtype=wide, device=counts.device)
    if fft:
        return _convolve(counts, step, width)[1:-1]
    population, moment = _windows(counts, step, width)
    return spacing * moment.to(wide) - width * population.to(wide)


def mean_field_energy(counts: Tensor, spacing: float, width: float) -> float:
    """Energy of the binned weights, without the self terms (Eq. 6)."""
    wide = _wide(counts.device)
    step = torch.tensor(spacing, dtype=wide, device=counts.device)
    population, moment = _windows(counts, step, width)
    weights = counts.to(wide)
    distance, pairs = (weights * moment).sum(), (weights * (population - 1)).sum()
    return spacing * float(distance) - width * float(pairs)


def force_table(counts: Tensor, spacing: float, width: float, fft: bool) -> Tensor:
    """dV/dtheta at the midpoints of the bins."""
    step = torch.tensor(spacing, dtype=_wide(counts.device), device=counts.device)
    return _force_table(counts, step, width, 1.0, fft)


def force(theta: Tensor, width: float, bins: int, fft: bool) -> Tensor:
    """dV/dtheta of each weight (Eq. 7, without h)."""
    x, binning = _binned(theta, bins)
    index = binning.index(x)
    table = _force_table(_counts(index, bins, None), binning.spacing, width, 1.0, fft)
    return table.to(x.dtype)[index]


class Coupling:
    """The layers of one device; the first refused step is remembered there until `check` asks."""

    def __init__(
        self, layers: Sequence[CoupledLayer], indices: Sequence[int], bins: int, fft: bool
    ) -> None:
        self._layers = tuple(layers)
        self._indices = tuple(indices)
        self._bins, self._fft = bins, fft
        device = layers[0].parameter.device
        self._faults = torch.zeros(len(layers), 4, dtype=_wide(device), device=device)

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
        for row, (theta, gradient) in enumerate(zip(thetas, gradients, strict=True)):
            if gradient is None:
                continue
            x = _compute(_flat(theta))
            binning = _Binning.of(x, self._bins)
            faults[row] = binning.fault()
            active.append((row, x, binning, _flat(gradient)))
        fine = (faults == 0).all()
        self._faults = torch.where((self._faults == 0).all(), faults, self._faults)
        for row, x, binning, gradient in active:
            layer = self._layers[row]
            index = binning.index(x)
            keep = _sample(x, fraction, seed, step, self._indices[row])
            counts = _counts(index, self._bins, keep)
            strength = layer.strength * scale / fraction
            table = _force_table(counts, binning.spacing, layer.width, strength, self._fft)
            total = gradient.to(x.dtype) + table.to(x.dtype)[index]
            gradient.copy_(torch.where(fine, total.to(gradient.dtype), gradient))

    def set(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """Do nothing: each step is told. Captured in a CUDA graph, it would repeat its sample."""

    def check(self) -> None:
        """Raise ValueError naming layers and reasons if a step was refused since the last check."""
        faults = self._faults.tolist()
        self._faults = torch.zeros_like(self._faults)
        reasons = [
            f"layer '{layer.name}': {_reason(fault, layer.size, layer.parameter.dtype)}"
            for layer, fault in zip(self._layers, faults, strict=True)
            if any(fault)
        ]
        if reasons:
            raise ValueError("; ".join(reasons))


@dataclass(frozen=True)
class _Binning:
    """The bins of a layer, all but their number on its device; `inverse` is 0 for a point."""

    low: Tensor
    high: Tensor
    inverse: Tensor
    spacing: Tensor
    bins: int
    nonfinite: Tensor

    @classmethod
    def of(cls, x: Tensor, bins: int) -> _Binning:
        low, high = x.aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        nonfinite = (~x.isfinite()).sum()
        wide = _wide(x.device)
        # Divided by tensors: torch multiplies by the reciprocal where it is given a number.
        inverse = x.new_full((), bins) / (high - low)
        spacing = (high.to(wide) - low.to(wide)) / torch.full_like(low, bins, dtype=wide)
        fine = (high > low) & inverse.isfinite()
        return cls(
            low, high, torch.where(fine, inverse, 0), torch.where(fine, spacing, 0), bins, nonfinite
        )

    def index(self, x: Tensor) -> Tensor:
        """The bin of each weight, in range even where the weights are refused."""
        return ((x - self.low) * self.inverse).to(torch.int64).clamp(0, self.bins - 1)

    def fault(self) -> Tensor:
        """What makes the weights unfit: how many are not finite, low, high, range overflows.

        All zero where nothing does.
        """
        overflow = ~(self.high - self.low).isfinite()
        fault = torch.stack([self.nonfinite, self.low, self.high, overflow])
        return torch.where((self.nonfinite > 0) | overflow, fault, 0)


def _binned(theta: Tensor, bins: int) -> tuple[Tensor, _Binning]:
    """The weights as they are computed with, and their bins; ValueError if they are unfit."""
    if theta.numel() > MAX_WEIGHTS:
        raise ValueError(f"a binned layer has at most {MAX_WEIGHTS} weights, not {theta.numel()}")
    x = _compute(theta)
    binning = _Binning.of(x, bins)
    fault = binning.fault().tolist()
    if any(fault):
        raise ValueError(_reason(fault, x.numel(), x.dtype))
    return x, binning


def _reason(fault: Sequence[float], size: int, dtype: torch.dtype) -> str:
    nonfinite, low, high, _ = fault
    if nonfinite:
        return f"{nonfinite:.0f} of {size} weights are not finite (NaN or inf)"
    bits = 64 if dtype == torch.float64 else 32
    return f"the range of the weights, {low:f} to {high:f}, is wider than float{bits} can hold"


def _finite(theta: Tensor) -> Tensor:
    """The weights as differences are taken of them; ValueError unless all are finite."""
    nonfinite = int((~theta.isfinite()).sum())
    if nonfinite:
        raise ValueError(_reason((nonfinite, 0, 0, 0), theta.numel(), theta.dtype))
    return theta.to(_wide(theta.device))


def _counts(index: Tensor, bins: int, keep: Tensor | None) -> Tensor:
    ones = torch.ones_like(index) if keep is None else keep
    return torch.zeros(bins, dtype=torch.int64, device=index.device).index_add_(0, index, ones)


def _sample(x: Tensor, fraction: float, seed: int, step: int, layer: int) -> Tensor | None:
    """1 for each weight drawn and 0 for the others, int64; None if all are (cpp: sampling.h)."""
    threshold = int(fraction * 2**32)
    if threshold >= 2**32:
        return None
    key = _splitmix64(_splitmix64(seed, step), layer)
    # int64 products wrap around as uint64 ones do; a logical shift masks the sign's copies.
    z = torch.arange(1, x.numel() + 1, device=x.device) * _signed(GAMMA) + _signed(key)
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


def _reach(width: float, spacing: Tensor, bins: int) -> Tensor:
    """The largest m < bins with m · spacing < width; the products decide, not the quotient."""
    most = bins - 1
    m = (torch.full_like(spacing, width) / spacing).clamp(max=most).to(torch.int64)
    m = torch.where((m > 0) & (m * spacing >= width), m - 1, m)
    return torch.where((m + 1) * spacing < width, m + 1, m).clamp(max=most)


def _prefix(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _windows(counts: Tensor, spacing: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Population and first moment of the window around each bin, int64."""
    bins = counts.numel()
    k = torch.arange(bins, device=counts.device)
    m = _reach(width, spacing, bins)
    first, last = (k - m).clamp(min=0), (k + m + 1).clamp(max=bins)
    population, moment = _prefix(counts), _prefix(k * counts)
    left = k * (population[k] - population[first]) - (moment[k] - moment[first])
    right = (moment[last] - moment[k]) - k * (population[last] - population[k])
    return population[last] - population[first], left + right


def _force_table(counts: Tensor, spacing: Tensor, width: float, scale: float, fft: bool) -> Tensor:
    """Scale · dV/dtheta on the midpoints of the bins; 0 if all weights are at one point."""
    bins, wide = counts.numel(), _wide(counts.device)
    if fft:
        v = _convolve(counts, spacing, width)
        table = scale * (v[2:] - v[:-2]) / (2 * spacing)
    else:
        k = torch.arange(bins, device=counts.device)
        m = _reach(width, spacing, bins)
        prefix = _prefix(counts)
        below = prefix[k] - prefix[(k - m).clamp(min=0)]
        above = prefix[(k + m + 1).clamp(max=bins)] - prefix[k + 1]
        table = scale * (below - above).to(wide)
    return torch.where(spacing > 0, table, 0)


def _convolve(counts: Tensor, spacing: Tensor, width: float) -> Tensor:
    """V on the midpoints -1 … bins, by FFTs so long that nothing wraps around."""
    bins = counts.numel()
    length = 2 ** (2 * bins).bit_length()
    d = torch.arange(length, device=counts.device)
    well = (torch.minimum(d, length - d) * spacing - width).clamp(max=0)
    signal = torch.fft.rfft(counts.to(well.dtype), n=length)
    v = torch.fft.irfft(signal * torch.fft.rfft(well), n=length)
    return torch.cat([v[-1:], v[: bins + 1]])


def _neighbours(x: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """For each of the sorted weights, where those closer than width begin and end.

    A binary search for all at once, on the differences themselves, so that rounding decides as in
    the core.
    """
    place = torch.arange(x.numel(), device=x.device)
    low = _first(lambda j: x - x[j] < width, torch.zeros_like(place), place)
    high = _first(lambda j: x[j] - x >= width, place + 1, torch.full_like(place, x.numel()))
    return low, high


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
    return theta if theta.dtype == torch.float64 else theta.float()


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
