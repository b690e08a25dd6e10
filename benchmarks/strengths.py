"""Strength and length of the coupling: ``python -m benchmarks.strengths``.

Two small networks, each trained by a plain PyTorch loop on synthetic data: one for time series
(depthwise convolutions, normalisation, a GRU; Adam) and one for tables with bags of tokens (SGD
without momentum). Each is pretrained once per seed and compressed to two sizes: without coupling,
with the defaults, and with a different force, end or share of the coupling. Two further settings
have a learning rate schedule in the loop: ignored in the second part, as by default, and followed.
Runs that are already in the output are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.digits import spread
from benchmarks.harness import Options
from benchmarks.report import environment
from pysoftq import ClusteringConfig, Compressor, Target
from pysoftq.atomic import atomic_write
from pysoftq.compressor import compressor as module
from pysoftq.compressor.rungs import COUPLED
from pysoftq.compressor.strength import RATIO
from pysoftq.compressor.training import Rates

SEEDS = (0, 1, 2)
BATCH = 64
RESULTS = Path(__file__).parent / "results"

Data = tuple[Tensor, Tensor, Tensor]  # two inputs and the expected outputs


@dataclass(frozen=True)
class Setting:
    """A coupling; a field that is None has the package's default.

    Attributes:
        force: rms force in rms gradients; 0 couples nothing.
        spare: bits above the target at which the coupling ends.
        share: of the steps that it takes at most.
        potential: linear or log.
        schedule: whether the learning rate falls to 0 along a cosine over the whole training.
        followed: whether that schedule lowers the learning rates of the second part as well.
    """

    force: float | None = None
    spare: float | None = None
    share: float | None = None
    potential: str = "linear"
    schedule: bool = False
    followed: bool = False


SETTINGS = {
    "without coupling": Setting(force=0.0),
    "linear": Setting(),
    "log": Setting(potential="log"),
    "force 0.1": Setting(force=0.1),
    "force 1": Setting(force=1.0),
    "force 4": Setting(force=4.0),
    "force 20": Setting(force=20.0),
    "ends at one bit more": Setting(spare=1.0),
    "ends at three bits more": Setting(spare=3.0),
    "three quarters of the steps": Setting(share=0.75),
    "schedule": Setting(force=0.0, schedule=True),
    "schedule, followed": Setting(force=0.0, schedule=True, followed=True),
}


@dataclass(frozen=True)
class Problem:
    """A network, its data and its training.

    Attributes:
        name: in the table.
        data: makes n examples from a seed.
        examples: number of training examples.
        network: makes the network, untrained.
        optimizer: for parameters and a learning rate; None is that of the compression.
        pretrained: epochs and learning rate of the pretraining.
        epochs: of a compression.
        loss: of outputs and expected outputs.
        quality: of the same, in per cent.
        bits: targets of the compression.
    """

    name: str
    data: Callable[[int, int], Data]
    examples: int
    network: Callable[[], nn.Module]
    optimizer: Callable[[Sequence[nn.Parameter], float | None], Optimizer]
    pretrained: tuple[int, float]
    epochs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    quality: Callable[[Tensor, Tensor], float]
    bits: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A compressed network: its bits, and what it has lost on the test data, in points."""

    problem: str
    setting: str
    bits: float
    seed: int
    entropy_bits: float
    coupled: float
    quality: float
    lost: float

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.problem}, {self.setting}, {self.bits:g} bits, seed {self.seed}"


class Series(nn.Module):
    """Eight classes of three signals in time."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels: int, out: int, groups: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv1d(channels, channels, 5, padding=2, groups=channels, bias=False),
                nn.BatchNorm1d(channels),
                nn.ReLU(),
                nn.Conv1d(channels, out, 1, groups=groups, bias=False),
                nn.BatchNorm1d(out),
                nn.ReLU(),
            )

        self.stem = nn.Conv1d(3, 32, 7, stride=4, padding=3, bias=False)
        self.body = nn.Sequential(nn.BatchNorm1d(32), block(32, 64, 1), block(64, 64, 4))
        self.gru = nn.GRU(64, 48, batch_first=True)
        self.head = nn.Linear(48, 8)

    def forward(self, signals: Tensor, _: Tensor) -> Tensor:
        found: Tensor = self.body(self.stem(signals)).transpose(1, 2)
        outputs: Tensor = self.head(self.gru(found)[0][:, -1])
        return outputs


def series(count: int, seed: int) -> Data:
    """Order of two events, direction of a chirp, sign of a correlation: a bit of the class each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (count,), generator=generator)
    order, rises, together = (labels >> bit & 1 for bit in range(3))
    time = torch.arange(96.0)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    signals = 0.5 * torch.randn(count, 3, 96, generator=generator)
    walk = torch.randn(count, 96, generator=generator).cumsum(1)
    walk = 0.6 * walk / walk.std(1, keepdim=True)
    signals[:, 0] += walk
    signals[:, 1] += walk * (2 * together - 1)[:, None]
    bent = 0.0006 * (2 * rises - 1)[:, None] * (time - 48) ** 2 / 2
    signals[:, 2] += torch.sin(2 * math.pi * (drawn(0.05, 0.15) * time + bent) + drawn(0, 6.28))
    early, late = drawn(10, 35), drawn(55, 85)
    for channel, swapped in ((0, order == 1), (1, order == 0)):
        event = torch.where(swapped[:, None], early, late)
        signals[:, channel] += 1.5 * torch.exp(-(((time - event) / 3) ** 2))
    return signals, labels, labels


class Tables(nn.Module):
    """Three outputs of ten numbers and a bag of tokens."""

    TOKENS, LONGEST = 400, 12

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(self.TOKENS, 24, padding_idx=0)
        self.layers = nn.Sequential(
            nn.Linear(34, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 3)
        )

    def forward(self, numbers: Tensor, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.layers(torch.cat([numbers, self.bag(tokens)], 1))
        return outputs


def tables(count: int, seed: int) -> Data:
    """A smooth function of the numbers, and a value for each token that depends on one of them."""
    world = torch.Generator().manual_seed(7)
    worth = torch.randn(Tables.TOKENS, 3, generator=world)
    worth *= torch.rand(Tables.TOKENS, 1, generator=world) < 0.5
    first, second = torch.randn(10, 6, generator=world), torch.randn(6, 3, generator=world)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, 10, generator=generator)
    lengths = torch.randint(1, Tables.LONGEST + 1, (count, 1), generator=generator)
    often = 1 / (torch.arange(1, Tables.TOKENS) + 5.0)
    drawn = torch.multinomial(often, count * Tables.LONGEST, replacement=True, generator=generator)
    tokens = drawn.view(count, -1) + 1
    tokens = torch.where(torch.arange(Tables.LONGEST) < lengths, tokens, 0)
    of_tokens = (worth[tokens] * (tokens > 0)[..., None]).sum(1) / lengths.sqrt()
    outputs = 0.5 * torch.tanh(numbers @ first / 2) @ second
    outputs += of_tokens * (1 + 0.5 * numbers[:, :1].sign())
    return numbers, tokens, outputs + 0.1 * torch.randn(count, 3, generator=generator)


def explained(found: Tensor, outputs: Tensor) -> float:
    """The share of the variance that is explained, mean over the outputs, in per cent."""
    left = (found - outputs).square().mean(0) / outputs.var(0)
    return 100 * float(1 - left.mean())


def accuracy(found: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return 100 * float((found.argmax(1) == labels).float().mean())


PROBLEMS = (
    Problem(
        "series",
        series,
        4000,
        Series,
        lambda parameters, lr: Adam(parameters, lr=lr or 1e-3),
        (15, 3e-3),
        12,
        F.cross_entropy,
        accuracy,
        (1.1, 0.7),
    ),
    Problem(
        "tables",
        tables,
        8000,
        Tables,
        lambda parameters, lr: SGD(parameters, lr=lr or 0.1),
        (60, 0.3),
        40,
        F.mse_loss,
        explained,
        (2.5, 1.5),
    ),
)


def epochs(
    problem: Problem, model: nn.Module, optimizer: Optimizer, count: int, *, falls: bool
) -> None:
    """Train on the training data, with a learning rate that falls to 0 or stays."""
    *inputs, wanted = problem.data(problem.examples, 1)
    batches = math.ceil(len(wanted) / BATCH)
    length = count * batches if falls else 10**9
    schedule = CosineAnnealingLR(optimizer, length)
    model.train()
    for _ in range(count):
        for places in torch.randperm(len(wanted)).split(BATCH):
            optimizer.zero_grad()
            problem.loss(model(*(one[places] for one in inputs)), wanted[places]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def quality(problem: Problem, model: nn.Module) -> float:
    """On the test data."""
    *inputs, wanted = problem.data(10_000, 2)
    model.eval()
    return problem.quality(model(*inputs), wanted)


def pretrained(problem: Problem, seed: int) -> nn.Module:
    """A network that is trained to the end."""
    torch.manual_seed(seed)
    model = problem.network()
    count, lr = problem.pretrained
    epochs(problem, model, problem.optimizer([*model.parameters()], lr), count, falls=True)
    return model


def run(problem: Problem, name: str, bits: float, seed: int, start: dict[str, Tensor]) -> Row:
    """Compress a pretrained network."""
    setting = SETTINGS[name]
    torch.manual_seed(seed)
    model = problem.network()
    model.load_state_dict(start)
    before = quality(problem, model)
    share = COUPLED if setting.share is None else setting.share
    compressor = Compressor(
        model,
        Target(bits=bits),
        ClusteringConfig(potential=setting.potential),
        coupled=0.0 if setting.force == 0 else share,
    )
    factor = 1.0 if setting.force is None else setting.force / RATIO
    compressor.on_strength = lambda found: found.softq.set_strength(factor * found.softq.h)
    optimizer = problem.optimizer([*model.parameters()], None)
    steps = problem.epochs * math.ceil(problem.examples / BATCH)
    merged: list[int] = []
    compressor.before_merging = lambda found: merged.append(found.report().step)
    compressor.attach(optimizer, total_steps=steps)
    with ExitStack() as patches:
        if setting.spare is not None:
            patches.enter_context(patch.object(module, "SPARE_BITS", setting.spare))
        if setting.followed:
            patches.enter_context(patch.object(Rates, "note", _follow))
        epochs(problem, model, optimizer, problem.epochs, falls=setting.schedule)
    report = compressor.finalize()
    after = quality(problem, model)
    rung = report.networks[-1]
    return Row(problem.name, name, bits, seed, rung.bits, merged[0] / steps, after, before - after)


def _follow(self: Rates, optimizer: Optimizer) -> None:
    """The present learning rates in place of their peaks."""
    self._peaks = [float(group["lr"]) for group in optimizer.param_groups]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A row for each setting and a column for each problem and number of bits, over the seeds."""
    columns = list(dict.fromkeys((row.problem, row.bits) for row in rows))
    titles = [f"{problem}, {bits:g} bits" for problem, bits in columns]
    yield f"| coupling | {' | '.join(titles)} |"
    yield f"|---|{'---|' * len(columns)}"
    for setting in dict.fromkeys(row.setting for row in rows):
        cells = []
        for column in columns:
            own = [
                row for row in rows if row.setting == setting and (row.problem, row.bits) == column
            ]
            share = statistics.fmean(row.coupled for row in own)
            bits = statistics.fmean(row.entropy_bits for row in own)
            lost = spread([row.lost for row in own], 1)
            cells.append(f"{lost} ({bits:.2f}; {100 * share:.0f} %)")
        yield f"| {setting} | {' | '.join(cells)} |"


def page(rows: Sequence[Row]) -> str:
    """The report."""
    count = len({row.seed for row in rows})
    text = (
        f"Points lost on 10,000 test examples, mean ± standard deviation over {count} seeds; in "
        "brackets the entropy bits that were reached, and after which share of the steps clusters "
        f"merge. Unless stated otherwise, the force is {RATIO:g} of the gradient, the coupling "
        f"ends {module.SPARE_BITS:g} bits above the target or after {100 * COUPLED:g} % of the "
        "steps, and the learning rate is constant. Series: accuracy; tables: variance explained."
    )
    return f"# Strength and length of the coupling\n\n{text}\n\n" + "\n".join(table(rows)) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Do the runs; write ``strengths.json`` after each, ``strengths.md`` at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strengths", description="Strength and length of the coupling."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "strengths.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    rows = {row.name: row for row in (Row(**one) for one in content["rows"])}
    torch.set_num_threads(1)
    for problem in PROBLEMS:
        for seed in chosen.seeds:
            start: dict[str, Tensor] = {}
            for bits in problem.bits:
                for setting in SETTINGS:
                    name = f"{problem.name}, {setting}, {bits:g} bits, seed {seed}"
                    if name in rows:
                        continue
                    print(f"{name} …", file=sys.stderr, flush=True)
                    start = start or dict(pretrained(problem, seed).state_dict())
                    rows[name] = run(problem, setting, bits, seed, start)
                    write(path, list(rows.values()))
    text = page(list(rows.values()))
    (chosen.output / "strengths.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def write(path: Path, rows: Sequence[Row]) -> None:
    """Keep all rows, and where they were measured."""
    content: dict[str, Any] = {
        "environment": environment(Options(1)),
        "rows": [asdict(row) for row in rows],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
