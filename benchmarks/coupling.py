"""What the coupling is worth: fronts with either potential and without it, from the same networks.

``python -m benchmarks.coupling CONFIG`` reads options of ``pysoftq compress`` (YAML) with the sizes
of a front, and trains a front for each method and seed, all in as many epochs. Besides both
potentials and no coupling, methods are ideas that are not in the package (`variants`); with a
strength, as in "log h=11", it is not chosen from the gradients. The fronts of a seed begin with the
same pretrained network, those of all seeds with --one-network. Networks of the same size are
compared by a paired test over the examples of the test set. With --baselines, k-means and
entropy-constrained k-means of the same networks, whose codebooks are trained for as many epochs,
and of networks for images PARQ, are beside them. A run that was interrupted resumes; one that is
finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp
from torch import Tensor, nn

from benchmarks.baselines import BASELINES, baselines_of, described, train
from benchmarks.digits import spread
from benchmarks.figure import BLUE, GREEN, GREY, VERMILLION
from benchmarks.harness import Options
from benchmarks.report import environment
from benchmarks.variants import VARIANTS, variant_of
from pysoftq import inspect_compressed, load_compressed
from pysoftq.analysis.figures import save_figure
from pysoftq.atomic import atomic_write
from pysoftq.cli.progress import TerminalObserver
from pysoftq.data.predictions import logits_of
from pysoftq.data.tasks import Data
from pysoftq.models.weight_files import load_weights
from pysoftq.run.config import CompressConfig, make_config, read_config
from pysoftq.run.driver import compress
from pysoftq.run.folder import RunFolder
from pysoftq.run.front import Front
from pysoftq.run.setup import make_model, read_data

# Without coupling, clusters merge after the first epoch at the latest, in which there is no force.
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"potential": "linear"},
    "log": {"potential": "log"},
    "uncoupled": {"h": 0.0, "epochs": 1},
}
METHODS |= dict.fromkeys(VARIANTS, METHODS["linear"])
METHODS["merged early"] = METHODS["uncoupled"]
COLOURS = {"linear": BLUE, "log": GREEN, "uncoupled": VERMILLION}
LINES = ("-", "--", ":", "-.")  # of methods of the same colour
QUALITIES = "qualities.npz"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A network of a front, or a baseline.

    Attributes:
        method, seed: of its run.
        size: that it was trained to, in bytes; None for a baseline.
        bytes: of its file.
        bits, entropy_bits: log2 K and entropy, means over the clustered weights.
        lost_on_validation, lost: against the pretrained network, in points of accuracy or percent
            of perplexity; on validation data, None for a baseline.
        merit: accuracy or perplexity on the test data.
        layers: entropy bits of each.
    """

    method: str
    seed: int
    size: int | None
    bytes: int
    bits: float
    entropy_bits: float
    lost_on_validation: float | None
    lost: float
    merit: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class Gain:
    """What a method gains over no coupling at one size, on the same test examples.

    Attributes:
        method, size: as in `Row`.
        seeds: number of them.
        points: gained, mean over examples and seeds; in the unit of losses.
        error: standard error over the examples, each a mean over the seeds.
        p: of a gain of 0, two-sided, if other examples are drawn.
        least, most: of the seeds.
        p_seeds: of a gain of 0, two-sided, if other seeds are drawn; None of a single one.
    """

    method: str
    size: int
    seeds: int
    points: float
    error: float
    p: float
    least: float
    most: float
    p_seeds: float | None = None


@dataclass(frozen=True)
class Study:
    """Where runs are, and what they have in common."""

    config: Mapping[str, Any]
    work: Path
    seeds: Sequence[int]
    methods: Sequence[str]
    one_network: bool
    baselines: Sequence[tuple[str, float]]

    def folder(self, method: str, seed: int) -> Path:
        """Of a run."""
        return self.work / f"{method}-{seed}"

    def options(self, method: str, seed: int) -> CompressConfig:
        """Of a run."""
        fixed = options_of(method)
        given: dict[str, Any] = {**self.config, **fixed, "seed": seed}
        own = fixed.get("epochs")
        if own is not None:
            given["codebook_epochs"] += self.config["epochs"] - own
        first = self.folder(self.methods[0], self.seeds[0]) / "pretrained.safetensors"
        if self.one_network:
            given["split_seed"] = self.seeds[0]
            if first.is_file() and seed != self.seeds[0]:
                given["weights"] = str(first)
        return make_config(given)

    def run(self, method: str, seed: int) -> None:
        """Train a front unless it is finished, and measure its networks on each test example."""
        folder = RunFolder(self.folder(method, seed))
        if (folder.path / QUALITIES).is_file():
            return
        print(f"{method}, seed {seed} …", file=sys.stderr, flush=True)
        config = self.options(method, seed)
        progress = TerminalObserver()
        try:
            with variant_of(name_of(method)):
                compress(config, folder.path, progress, resume=folder.exists)
        finally:
            progress.close()
        data = read_data(config)
        model = make_model(config, data, torch.device("cpu"))
        model.load_state_dict(load_weights(folder.pretrained))
        networks = (folder.path / rung.file for rung in Front.read(folder.front).rungs)
        found = [qualities(model, data)]
        found += [qualities(load_compressed(path, model), data) for path in networks]
        _keep(folder.path / QUALITIES, found)

    def run_baseline(self, method: str, value: float, seed: int) -> None:
        """Train codebooks unless it is done; the network begins as the first front of the seed."""
        path = self.baseline(method, value, seed)
        if path.with_suffix(".npz").is_file():
            return
        print(f"{path.stem} …", file=sys.stderr, flush=True)
        config = self.options(self.methods[0], seed)
        pretrained = RunFolder(self.folder(self.methods[0], seed)).pretrained
        if not path.is_file():
            train(config, pretrained, method, value, path)
        data = read_data(config)
        model = load_compressed(path, make_model(config, data, torch.device("cpu")))
        _keep(path.with_suffix(".npz"), [qualities(model, data)])

    def baseline(self, method: str, value: float, seed: int) -> Path:
        """The file of a baseline."""
        return self.work / f"{method} {value:g}, seed {seed}.safetensors"

    def baseline_rows(self) -> Iterator[Row]:
        """All baselines."""
        for seed in self.seeds:
            front = Front.read(RunFolder(self.folder(self.methods[0], seed)).front)
            for method, value in self.baselines:
                path = self.baseline(method, value, seed)
                with np.load(path.with_suffix(".npz")) as file:
                    merit = front.measure.merit_at(float(file["qualities"].mean(dtype=np.float64)))
                yield Row(
                    described(method, value),
                    seed,
                    None,
                    **bits_of(path),
                    lost_on_validation=None,
                    lost=front.measure.degradation(front.pretrained_test or math.nan, merit),
                    merit=merit,
                )

    def rows(self) -> Iterator[Row]:
        """All networks of the fronts."""
        for seed in self.seeds:
            for method in self.methods:
                folder = RunFolder(self.folder(method, seed))
                front = Front.read(folder.front)
                for rung in front.rungs:
                    lost = front.lost_on_test(rung)
                    if lost is None or rung.test is None:
                        raise ValueError(f"{folder.path}: the run is not finished")
                    yield Row(
                        method,
                        seed,
                        rung.target_bytes,
                        **bits_of(folder.path / rung.file),
                        lost_on_validation=front.lost(rung),
                        lost=lost,
                        merit=rung.test,
                    )

    def gains(self, sizes: Sequence[int]) -> Iterator[Gain]:
        """What coupling gains at each size, by methods."""
        if "uncoupled" not in self.methods:
            return
        found = {
            method: np.stack([self.qualities(method, seed) for seed in self.seeds])
            for method in self.methods
        }
        for method in (method for method in self.methods if method != "uncoupled"):
            for number, size in enumerate(sizes, 1):  # the first is the pretrained network
                pairs = found[method][:, number] - found["uncoupled"][:, number]
                yield gain(method, size, pairs)

    def qualities(self, method: str, seed: int) -> np.ndarray[Any, Any]:
        """(networks, examples), the pretrained network first."""
        with np.load(self.folder(method, seed) / QUALITIES) as file:
            content: np.ndarray[Any, Any] = file["qualities"]
        return content


def name_of(method: str) -> str:
    """A method without its strength."""
    return method.partition(" h=")[0]


def options_of(method: str) -> dict[str, Any]:
    """The options that are a method's own.

    Raises:
        ValueError: there is no such method, or its strength is no number.
    """
    name, _, h = method.partition(" h=")
    if name not in METHODS:
        raise ValueError(f"{name!r} is none of {', '.join(METHODS)}")
    return {**METHODS[name], "h": float(h)} if h else METHODS[name]


def checked(method: str) -> str:
    """A method on the command line."""
    try:
        options_of(method)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return method


def bits_of(path: Path) -> dict[str, Any]:
    """Bytes and bits of a file, the bits of its clustered tensors only."""
    info = inspect_compressed(path)
    layers = [layer for layer in info.layers if layer.coding != "raw"]
    weights = [layer.N for layer in layers]
    return {
        "bytes": info.bytes_on_disk,
        "bits": float(np.average([layer.bits for layer in layers], weights=weights)),
        "entropy_bits": float(
            np.average([layer.entropy_bits for layer in layers], weights=weights)
        ),
        "layers": {layer.name: layer.entropy_bits for layer in layers},
    }


def _keep(path: Path, found: Sequence[np.ndarray[Any, Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, qualities=np.stack(found))


def gain(method: str, size: int, pairs: np.ndarray[Any, Any]) -> Gain:
    """From differences (seeds, examples)."""
    pairs = pairs.astype(np.float64)  # in float32 small p become 0
    each, seeds = pairs.mean(axis=0), pairs.mean(axis=1)
    return Gain(
        method,
        size,
        len(pairs),
        float(each.mean()),
        float(each.std(ddof=1) / len(each) ** 0.5),
        _p_of_nothing(each),
        float(seeds.min()),
        float(seeds.max()),
        _p_of_nothing(seeds) if len(seeds) > 1 else None,
    )


def _p_of_nothing(values: np.ndarray[Any, Any]) -> float:
    """Student's two-sided test of a mean of 0."""
    return float(ttest_1samp(values, 0).pvalue) if values.any() else 1.0


def qualities(model: nn.Module, data: Data) -> np.ndarray[Any, Any]:
    """The quality of a network on each test example, whose mean is that of the test set.

    100 for an image that is classified rightly and 0 for others; -100 times the mean loss of a
    window of text.
    """
    model.eval()
    found: list[float] = []
    with torch.inference_mode():
        for inputs, targets in data.ordered(data.test):
            found += map(data.task.quality, *per_example(logits_of(model(inputs)), targets))
    return np.array(found, dtype=np.float32)


def per_example(logits: Tensor, targets: Tensor) -> tuple[list[float], list[float]]:
    """Mean loss and share of right predictions of each example."""
    classes = logits.float().transpose(1, -1) if logits.dim() > 2 else logits.float()
    losses = nn.functional.cross_entropy(classes, targets, reduction="none")
    right = (logits.argmax(-1) == targets).float()
    return losses.flatten(1).mean(1).tolist() if losses.dim() > 1 else losses.tolist(), (
        right.flatten(1).mean(1).tolist() if right.dim() > 1 else right.tolist()
    )


def networks_table(rows: Sequence[Row], unit: str) -> Iterator[str]:
    """Means over the seeds."""
    yield (
        "| size / bytes | method | entropy bits | log2 K | bytes | "
        f"lost on validation / {unit} | lost on test / {unit} |"
    )
    yield "|---|---|---|---|---|---|---|"
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.size), []).append(row)
    for (method, size), own in sorted(groups.items(), key=lambda group: -(group[0][1] or 0)):
        validation = [row.lost_on_validation for row in own if row.lost_on_validation is not None]
        cells = (
            "" if size is None else f"{size:,}",
            method,
            f"{statistics.fmean(row.entropy_bits for row in own):.2f}",
            f"{statistics.fmean(row.bits for row in own):.2f}",
            f"{statistics.fmean(row.bytes for row in own):,.0f}",
            over_seeds(validation) if validation else "",
            over_seeds([row.lost for row in own]),
        )
        yield f"| {' | '.join(cells)} |"


def over_seeds(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one seed its value."""
    return spread(values, 2) if len(values) > 1 else f"{values[0]:.2f}"


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over the seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def gains_table(gains: Sequence[Gain], unit: str) -> Iterator[str]:
    """What the coupling gains at each size."""
    yield (
        f"| size / bytes | method | gained / {unit} | standard error | p | least and most of the "
        "seeds | p over the seeds |"
    )
    yield "|---|---|---|---|---|---|---|"
    for one in gains:
        cells = (
            f"{one.size:,}",
            one.method,
            f"{one.points:+.2f}",
            f"{one.error:.2f}",
            f"{one.p:.2g}",
            f"{one.least:+.2f}, {one.most:+.2f}",
            "" if one.p_seeds is None else f"{one.p_seeds:.2g}",
        )
        yield f"| {' | '.join(cells)} |"


def draw(rows: Sequence[Row], unit: str) -> Figure:
    """Losses on the test data against entropy bits and log2 K, one line for each method."""
    figure = Figure(figsize=(8.6, 3.5))
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.15, top=0.95, wspace=0.08)
    for axes, name, label in zip(
        panels, ("entropy_bits", "bits"), ("entropy bits per weight", "$\\log_2 K$"), strict=True
    ):
        used: list[str] = []
        for method in dict.fromkeys(row.method for row in rows if row.size is not None):
            own = [row for row in rows if row.method == method]
            colour = COLOURS.get(name_of(method), GREY)
            used.append(colour)
            sizes = sorted({row.size or 0 for row in own})
            groups = [[row for row in own if row.size == size] for size in sizes]
            axes.errorbar(
                [statistics.fmean(getattr(row, name) for row in group) for group in groups],
                [statistics.fmean(row.lost for row in group) for group in groups],
                [deviation([row.lost for row in group]) for group in groups],
                label=method,
                color=colour,
                linestyle=LINES[(used.count(colour) - 1) % len(LINES)],
                marker="o",
                markersize=5,
                capsize=3,
                linewidth=1.6,
            )
        others = [row for row in rows if row.size is None]
        for method, marker in zip(BASELINES, "s^v", strict=True):
            own = [row for row in others if row.method.startswith(method)]
            if own:
                axes.plot(
                    [getattr(row, name) for row in own],
                    [row.lost for row in own],
                    marker,
                    color=GREY,
                    markersize=4,
                    markerfacecolor="white",
                    label=method if method == "PARQ" else f"{method}, codebooks trained",
                )
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(label)
        axes.grid(color="#e8e8e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"lost on the test data / {unit}")
    panels[1].legend(frameon=False)
    return figure


def page(study: Study, rows: Sequence[Row], gains: Sequence[Gain], unit: str) -> str:
    """The report."""
    config, count = study.config, len(study.seeds)
    seeds = f"{count} seeds" if count > 1 else "One seed"
    epochs = config["epochs"] + config["codebook_epochs"]
    conditions = (
        f"{Path(config['model']).name} on {Path(str(config['dataset']).rpartition(':')[2]).name}, "
        f"{epochs} epochs for each front. {seeds}; mean ± standard deviation over the seeds. "
        "Gains are those over the front without coupling at the same size, on the same test "
        "examples; standard errors and the first p are those over the examples."
    )
    parts = [
        "# What the coupling is worth",
        conditions,
        "\n".join(networks_table(rows, unit)),
        "\n".join(gains_table(gains, unit)),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing; write tables, JSON and figure once all is there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coupling", description=__doc__.split("\n")[0]
    )
    parser.add_argument("config", type=Path, help="options of pysoftq compress (YAML)")
    parser.add_argument("--dataset", help="in place of that of CONFIG")
    parser.add_argument("--model", help="in place of that of CONFIG")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--methods",
        nargs="+",
        type=checked,
        default=list(COLOURS),
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}, each also with a strength, such as 'log h=11'",
    )
    parser.add_argument(
        "--one-network", action="store_true", help="pretrained for the first seed, for all"
    )
    parser.add_argument(
        "--baselines", nargs="*", choices=BASELINES, help="these too; without a name all of them"
    )
    parser.add_argument("--work", type=Path, help="folder of the runs (runs/NAME)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    parser.add_argument("--name", help="of the results and of the folder of the runs (CONFIG's)")
    chosen = parser.parse_args(arguments)
    config = read_config(chosen.config)
    given = {"dataset": chosen.dataset, "model": chosen.model}
    config |= {name: value for name, value in given.items() if value}
    missing = {"model", "dataset", "epochs", "codebook_epochs", "front"} - config.keys()
    if missing:
        parser.error(f"{chosen.config} has no {', '.join(sorted(missing))}")
    name = chosen.name or chosen.config.stem
    work = chosen.work or Path("runs") / name
    study = Study(
        config,
        work,
        chosen.seeds,
        chosen.methods,
        chosen.one_network,
        baselines_of(config["dataset"], chosen.baselines),
    )
    for seed in study.seeds:
        for method in study.methods:
            study.run(method, seed)
        for method, value in study.baselines:
            study.run_baseline(method, value, seed)
    rows = [*study.rows(), *study.baseline_rows()]
    front = Front.read(RunFolder(study.folder(study.methods[0], study.seeds[0])).front)
    gains = list(study.gains([rung.target_bytes for rung in front.rungs]))
    content = {
        "environment": environment(Options(torch.get_num_threads())),
        "options": {**config, **{name: Path(str(config[name])).name for name in given}},
        "pretrained": front.pretrained_test,
        "rows": [asdict(row) for row in rows],
        "gains": [asdict(one) for one in gains],
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(chosen.output / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unit = front.measure.lost
    text = page(study, rows, gains, unit)
    (chosen.output / f"{name}.md").write_text(text, encoding="utf-8")
    save_figure(draw(rows, unit), chosen.output / name)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
