"""Saving and loading of clustered weights, packed and entropy-coded, and their bits on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import (
    Comparison,
    Contestants,
    Measure,
    Options,
    Spread,
    count,
    nanoseconds_per_weight,
    race,
    require,
)
from benchmarks.peers import files as peers
from benchmarks.states import Layers, gaussian
from pysoftq import load_compressed, save_compressed

COLUMNS = 1024
CLUSTERS = (16, 256)
MOST_FOR_PEERS = 10**7  # weights that other ways save: beyond, they take minutes and gigabytes


def run(options: Options) -> Iterator[Comparison]:
    """Nanoseconds for each weight of layers of 1e5 to 1e8 weights."""
    if options.device != "cpu":
        yield Comparison(key="files", setting="CPU", skipped=("files: CPU only",))
        return
    for power in options.choose((4,), (5, 6, 7), (5, 6, 7, 8)):
        theta = gaussian(10**power // COLUMNS, COLUMNS)
        for clusters in CLUSTERS:
            yield from _compare(clustered(theta, clusters), clusters, options)


def clustered(theta: Tensor, clusters: int) -> Tensor:
    """The weights in clusters of equal width, which cover eight standard deviations."""
    step = 8 * float(theta.std()) / clusters
    return theta.div(step).round_().clamp_(-(clusters // 2), clusters // 2 - 1).mul_(step) + 0.0


def _compare(theta: Tensor, clusters: int, options: Options) -> Iterator[Comparison]:
    model, target = Layers([theta]), Layers([torch.zeros_like(theta)])
    saving: Contestants = {}
    loading: Contestants = {}
    with tempfile.TemporaryDirectory() as folder:
        for coding in ("packed", "entropy"):
            path = Path(folder) / coding
            saving[coding] = partial(save_compressed, model, path, coding=coding)
            loading[coding] = partial(load_compressed, path, target)
        for name, peer in peers.FILES.items() if theta.numel() <= MOST_FOR_PEERS else ():
            path = Path(folder) / name
            saving[name] = partial(peer.save, theta, path)
            loading[name] = partial(peer.load, path)
        skipped = [name for name in saving if not _saves(saving[name])]
        bits = {}
        for name in skipped:
            del saving[name], loading[name]
        for name, load in loading.items():
            found = load()
            tensor = found if isinstance(found, Tensor) else target.weights[0].detach()
            require(torch.equal(tensor, theta), f"the weights of {name}")
            size = (Path(folder) / name).stat().st_size
            bits[f"{name}, bits"] = Measure(Spread.exactly(8 * size / theta.numel()), "bits")
        for operation, contestants in (("saving", saving), ("loading", loading)):
            timings = race(contestants, options)
            yield Comparison(
                key=f"files/{count(theta.numel())}/{operation}, {clusters} clusters",
                setting=f"{operation} {theta.numel():,} float32 weights in {clusters} clusters",
                timings=timings,
                checks=("the weights are those saved",),
                skipped=tuple(f"{name}: not installed" for name in skipped),
                extra=nanoseconds_per_weight(timings, theta.numel()) | bits,
            )


def _saves(save: Callable[[], object]) -> bool:
    """Whether a way of saving is installed; a file is then there."""
    try:
        save()
    except ImportError:
        return False
    return True
