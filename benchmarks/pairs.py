"""Exact energy and force of all pairs: by sorting, and by sums over the pairs themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

from benchmarks.harness import (
    Comparison,
    Measure,
    Options,
    Timing,
    compiled,
    count,
    race,
    require,
)
from benchmarks.peers.pairs import (
    BruteForce,
    bisection_energy,
    bisection_pairs,
    keops_energy,
    tree_pairs,
)
from benchmarks.states import STATES, WIDTH, weights
from pysoftq import pair_energy, pair_force

# Our direct sums evaluate the well once for each unordered and for each ordered pair.
EVALUATED = {"direct sum, energy": 0.5, "direct sum": 1.0}


def run(options: Options) -> Iterator[Comparison]:
    """Ours against the direct sums; sums that would take too long are timed on some of the rows."""
    quick = (10**6,) if options.device == "cuda" else (5000, 10**5)
    sizes = options.choose((1000,), quick, (10**4, 10**5, 10**6))
    for size, state in product(reversed(sizes), STATES):  # the targets are those of the largest
        yield _energies(size, state, options)
        yield _forces(size, state, options)


def _energies(size: int, state: str, options: Options) -> Comparison:
    theta = weights(size, state, options.device)
    whole, rows = theta[: _longest(options)], _rows(size, options)
    # Each sum with its number of weights, and of the rows that it goes through.
    sums: dict[str, tuple[Callable[[], float], int, int]] = {
        "pysoftq, sort": (lambda: pair_energy(theta, WIDTH), size, size),
        "direct sum, energy": (
            *(lambda: pair_energy(whole, WIDTH, method="direct"), len(whole), len(whole)),
        ),
    }
    for dtype in (torch.float64, torch.float32):
        brute = BruteForce(theta, WIDTH, dtype, rows)
        sums[f"PyTorch brute force, {str(dtype)[6:]}"] = (brute.energy, size, rows)
    skipped: tuple[str, ...] = ()
    if size <= 10**4 or options.device == "cuda":
        built, skipped = compiled({"KeOps, float32": partial(keops_energy, theta, WIDTH)}, options)
        sums |= {name: (energy, size, size) for name, energy in built.items()}

    array = theta.cpu().numpy()
    lines = []
    for name, (energy, length, part) in sums.items():
        error = abs(energy() / bisection_energy(array[:length], WIDTH, part) - 1)
        require(error < (1e-4 if "float32" in name else 1e-9), f"{name} is off by {error:.0e}")
        lines.append(f"{name} against bisection: {error:.0e}")
    contestants: dict[str, Callable[[], object]] = {name: one[0] for name, one in sums.items()}
    if options.device == "cpu":
        counted = tree_pairs(array, WIDTH), bisection_pairs(array, WIDTH)
        require(counted[0] == counted[1], f"pairs closer than w: {counted}")
        contestants["SciPy cKDTree, pairs only"] = partial(tree_pairs, array, WIDTH)
        lines.append("pairs closer than w by tree and by bisection: equal")

    shares = {name: length * part / size**2 for name, (_, length, part) in sums.items()}
    timings = race(contestants, options, shares)
    return _comparison(f"{count(size)}/{state}/energy", size, timings, lines, skipped)


def _forces(size: int, state: str, options: Options) -> Comparison:
    theta = weights(size, state, options.device)
    whole, rows = theta[: _longest(options)], _rows(size, options)
    brute = {
        f"PyTorch brute force, {str(dtype)[6:]}": BruteForce(theta, WIDTH, dtype, rows).force
        for dtype in (torch.float64, torch.float32)
    }
    contestants = {
        "pysoftq, sort": lambda: pair_force(theta, WIDTH),
        "direct sum": lambda: pair_force(whole, WIDTH, method="direct"),
        **brute,
    }
    ours, part = contestants["pysoftq, sort"](), pair_force(whole, WIDTH)
    require(bool((contestants["direct sum"]() == part).all()), "forces by sort and direct sum")
    lines = ["direct sum: equal as integers"]
    for name, function in brute.items():
        # In float32, pairs at the well's edge may fall on its other side.
        apart = int((function() - ours[:rows]).abs().max())
        require(apart <= (1e-3 * size if "float32" in name else 0), f"{name} is off by {apart}")
        lines.append(f"{name}: {apart} apart at most")
    shares = dict.fromkeys(brute, rows / size) | {"direct sum": len(whole) ** 2 / size**2}
    timings = race(contestants, options, shares)
    return _comparison(f"{count(size)}/{state}/force", size, timings, lines)


def _comparison(
    key: str,
    size: int,
    timings: tuple[Timing, ...],
    lines: list[str],
    skipped: tuple[str, ...] = (),
) -> Comparison:
    pairs = size * (size - 1) / 1e9
    direct = timings[1]
    evaluated = pairs * EVALUATED[direct.name]
    return Comparison(
        key=f"pairs/{key}",
        setting=f"{size:,} weights, w = {WIDTH} sigma",
        timings=timings,
        checks=tuple(lines),
        skipped=skipped,
        rates={one.name: f"{pairs / one.seconds.median:.3g} G ordered pairs/s" for one in timings},
        extra={"Gpair/s": Measure(direct.seconds.inverse() * evaluated, "")},
    )


def _longest(options: Options) -> int:
    """Weights up to which our direct sum is timed as a whole."""
    return 10**6 if options.device == "cuda" else options.choose(1000, 20_000, 10**5)


def _rows(size: int, options: Options) -> int:
    """Rows of the brute force: what takes a tenth of a second or so."""
    pairs = 10**11 if options.device == "cuda" else options.choose(10**6, 5 * 10**7, 10**8)
    return min(size, max(32, pairs // size))
