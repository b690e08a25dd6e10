"""Memory that a call needs at its peak beyond weights, gradient and result."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.files import clustered
from benchmarks.harness import Comparison, Measure, Options, Spread, count, threads
from benchmarks.states import STATES, WIDTH, Layers, weights
from pysoftq import SoftQuantizer, load_compressed, pair_energy, pair_force, save_compressed
from pysoftq.clusters.values import unique

# Bytes of each weight in what a call returns.
RESULT_BYTES = {
    "force step": 0,
    "exact energy": 0,
    "exact force": 8,
    "construction": 0,
    "finalize": 0,
    "energy": 0,
    "energy, channels": 0,
    "distinct values": 1,
    "saving, packed": 0,
    "saving, entropy": 0,
    "loading, packed": 0,
    "loading, entropy": 0,
}
ON_DEVICES = ("force step", "exact energy", "exact force")
COLUMNS = 1000  # of the weights of whole-model operations, whose channels have as many
_PROC = Path("/proc/self")


def run(options: Options) -> Iterator[Comparison]:
    """Each call in a fresh process; on a GPU what PyTorch's allocator saw."""
    if options.device == "cpu" and not sys.platform.startswith("linux"):
        yield Comparison(key="memory", setting="peaks", skipped=("memory: needs Linux",))
        return
    sizes = options.choose((10**5,), (10**6, 10**7), (10**6, 10**7, 10**8))
    calls = RESULT_BYTES if options.device == "cpu" else ON_DEVICES
    yield from (_measure(call, sizes, options) for call in calls)


def _measure(call: str, sizes: tuple[int, ...], options: Options) -> Comparison:
    peaks = {}
    for size in sizes:
        # A fresh process, whose allocator keeps nothing of earlier calls.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = (call, size, options.device, options.threads)
            peaks[size] = pool.apply(peak_bytes, arguments) - RESULT_BYTES[call] * size
    copies = {size: peak / (4 * size) for size, peak in peaks.items()}
    return Comparison(
        key=f"memory/{call}",
        setting="peak beyond weights, gradient and result",
        extra={
            **{f"{count(size)}, MiB": _exactly(peak / 2**20) for size, peak in peaks.items()},
            "copies of theta": _exactly(copies[max(sizes)]),
        },
    )


def _exactly(value: float) -> Measure:
    return Measure(Spread.exactly(value), "")


def peak_bytes(call: str, size: int, device: str, count_threads: int) -> int:
    """Bytes at the peak of one call, above those before it."""
    with threads(count_threads):
        prepare(call, 1000, device)()  # starts threads, loads code
        return added_bytes(prepare(call, size, device), device)


def added_bytes(function: Callable[[], object], device: str) -> int:
    """Bytes at the peak of a function, above those before it.

    On the CPU these are the bytes of the whole process: call it in one that does nothing else.
    """
    before = _start_peak(device)
    function()
    return _peak(device) - before


def prepare(call: str, size: int, device: str) -> Callable[[], object]:
    """The call, with all that it is given."""
    if call == "force step":
        return SoftQuantizer(Layers([weights(size, STATES[0], device)]), h=0.1, w=WIDTH).add_force_
    theta = weights(size, STATES[0], device)
    if call == "exact energy":
        return lambda: pair_energy(theta, WIDTH)
    if call == "exact force":
        return lambda: pair_force(theta, WIDTH)
    return _prepare_whole_model(call, theta.view(-1, COLUMNS))


def _prepare_whole_model(call: str, theta: Tensor) -> Callable[[], object]:
    name, _, how = call.partition(", ")
    if name == "energy":
        granularity = "channel" if how else "layer"
        return SoftQuantizer(Layers([theta]), w=WIDTH, granularity=granularity).energy
    if name in ("construction", "finalize"):
        model = Layers([theta])
        softq = SoftQuantizer(model, w=WIDTH)
        return softq.finalize if name == "finalize" else lambda: SoftQuantizer(model)
    theta = clustered(theta, 16)
    if name == "distinct values":
        return lambda: unique(theta)
    model = Layers([theta])
    folder = tempfile.TemporaryDirectory()  # goes with the process
    path = Path(folder.name) / "compressed"
    save = partial(save_compressed, model, path, coding=how)
    if name == "saving":
        return lambda: (save(), folder)
    save()
    return lambda: (load_compressed(path, model), folder)


def _start_peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    (_PROC / "clear_refs").write_text("5", encoding="ascii")  # the peak is what is resident now
    return _resident("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    for line in (_PROC / "status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
