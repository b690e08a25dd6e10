"""The compressed file: bytes of indices against their entropy, time to decode, memory at rest."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Comparison, Measure, Options, Spread, count, optional, race, require
from pysoftq import load_compressed, save_compressed
from pysoftq.artifact import ans
from pysoftq.artifact.entropy_coding import Streams, decode, encode, read_counts
from pysoftq.artifact.lazy import CompressedWeights
from pysoftq.artifact.packing import Palettes, pack, unpack
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import unique

KINDS = (
    *("soft, K = 16", "soft, K = 2", "soft, K = 128", "soft, K = 1000", "soft, K = 4096"),
    *("uniform, K = 128", "0.1 % ones"),
)


def run(options: Options) -> Iterator[Comparison]:
    """Each kind of indices, the first at the largest size as well; a model at rest."""
    size, large = options.choose((10**4, 10**4), (10**6, 10**6), (10**6, 10**8))
    sizes = dict.fromkeys(KINDS, size) | {KINDS[0]: large}
    yield from (_compare(kind, size, options) for kind, size in sizes.items())
    yield _at_rest(options.choose(100, 1000, 2240))


def indices(kind: str, size: int) -> Tensor:
    """Indices as soft quantization leaves them (a Laplace distribution), or extreme ones."""
    generator = np.random.default_rng(0)
    name, _, levels = kind.partition(", K = ")
    if not levels:
        drawn = generator.random(size) < 1e-3
    elif name == "uniform":
        drawn = generator.integers(0, int(levels), size)
    else:
        K = int(levels)
        drawn = np.clip(np.round(generator.laplace(K / 2, K / 25, size)), 0, K - 1)
    return unique(torch.from_numpy(np.asarray(drawn, dtype=np.float32))).indices


def _compare(kind: str, size: int, options: Options) -> Comparison:
    found = indices(kind, size)
    counts = torch.bincount(found)
    clusters = Clusters.of(torch.zeros(len(counts)), found, counts)
    bits, least = clusters.container_bits, clusters.entropy_bits * size / 8
    counted, palettes = counts.numpy(), Palettes(np.array([clusters.K]), np.array([0, size]))
    symbols, table = clusters.codes.numpy(), np.linspace(0, 1, clusters.K, dtype=np.float32)
    start = time.perf_counter()
    coded = encode(symbols, counted, palettes)
    encoded = time.perf_counter()
    packed = pack(symbols, bits)
    seconds = {"encoding": encoded - start, "packing": time.perf_counter() - encoded}
    values, out = table[symbols], np.zeros(size, dtype=np.float32)
    contestants: dict[str, Callable[[], object]] = {
        "entropy": lambda: decode(
            Streams.read(read_counts(coded, palettes)[1], palettes.count),
            *(counted, palettes, (table, out)),
        ),
        "packed": lambda: unpack(packed, bits, palettes, (table, out)),
    }
    for name, read in contestants.items():
        out.fill(-1)
        read()
        require(np.array_equal(out, values), name)
    taken = {"entropy": coded.size, "packed": packed.size}
    # Level 19 takes minutes for more.
    level = 19 if size <= 10**6 else 3
    peers, skipped = optional(
        {
            f"zstandard, level {level}": lambda: _zstandard(found, level),
            "constriction": lambda: _constriction(found, counted),
        }
    )
    for name, (squeezed, expand) in peers.items():
        contestants[name], taken[name] = expand, squeezed
    codebook = 4 * clusters.K
    timings = race(contestants, options)
    return Comparison(
        key=f"coding/{count(size)}/{kind}",
        setting=f"decoding {size:,} indices, {kind}, entropy {clusters.entropy_bits:.3f} bits",
        timings=timings,
        checks=("decoded indices are those coded",),
        skipped=skipped,
        rates={one.name: f"{size / one.seconds.median / 1e6:.3g} M/s" for one in timings},
        extra={
            **{name: Measure(Spread.exactly(time_), "s") for name, time_ in seconds.items()},
            **{
                f"{name}, with codebook, over entropy": Measure(
                    Spread.exactly((bytes_ + codebook) / (least + codebook)), "×"
                )
                for name, bytes_ in taken.items()
            },
        },
    )


def _zstandard(found: Tensor, level: int) -> tuple[int, Callable[[], object]]:
    import zstandard

    data = found.numpy().astype(np.uint8 if int(found.max()) < 256 else np.uint16).tobytes()
    squeezed = zstandard.compress(data, level)
    return len(squeezed), lambda: zstandard.decompress(squeezed)


def _constriction(found: Tensor, counts: np.ndarray) -> tuple[int, Callable[[], object]]:
    """A single stream, as in version 2 of the format."""
    from constriction import stream

    frequencies = np.diff(ans.frequencies(counts)) - 1.0
    model = stream.model.Categorical(frequencies, perfect=False)
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(found.numpy().astype(np.int32), model)
    words = coder.get_compressed()
    return words.nbytes, lambda: stream.stack.AnsCoder(words).decode(model, len(found))


def _at_rest(width: int) -> Comparison:
    weights = 5 * width * width
    with tempfile.TemporaryDirectory() as folder:
        path, packed = Path(folder) / "a.safetensors", Path(folder) / "packed.safetensors"
        model = _model(width)
        for layer in model:
            drawn = indices(KINDS[0], width * width)
            layer.weight = nn.Parameter(drawn.reshape(width, width) * 0.1)
        save_compressed(model, packed, coding="packed")
        save_compressed(model, path)
        size = packed.stat().st_size
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            held, resident = pool.apply(at_rest, (path, width))
    measures = {
        "held by the modules": held / size,
        "growth of the process, each further model": resident / size,
        "the same in float32": 4 * weights / size,
    }
    return Comparison(
        key=f"coding/lazy/{count(weights)}",
        setting=f"{weights:,} weights at rest, loaded lazily; file with packed indices = 1",
        extra={name: Measure(Spread.exactly(value), "×") for name, value in measures.items()},
    )


def at_rest(path: Path, width: int) -> tuple[int, float]:
    """Bytes that the modules hold, and by which a fresh process grows with each further model."""
    models = []
    for _ in range(5):
        with torch.device("meta"):
            blank = _model(width)
        models.append(load_compressed(path, blank, lazy=True))
        if len(models) == 1:  # code and the allocator's pools have come with it
            before = _resident()
    held = sum(
        weight.nbytes
        for module in models[0].modules()
        if isinstance(module, CompressedWeights)
        for weight in module._compressed.values()
    )
    return held, (_resident() - before) / 4


def _model(width: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(5)))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096
