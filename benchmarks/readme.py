"""The tables of README.md, made from ``benchmarks/results``: ``python -m benchmarks.readme``.

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test compares them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import digits
from pysoftq.run.networks import NetworkRow

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FLOAT32_KB = 1094.288  # of ResNet-20: benchmarks/results/resnet20-cifar10.md

Row = tuple[str, ...]

# Label, method and parameters of the rows of the first table.
COMPARED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "**soft quantization, recipe `best`, h = 0.001, rd_weight = 0.02**",
        "soft",
        {"h": 0.001, "recipe": "best", "rd_weight": 0.02},
    ),
    (
        "**soft quantization, recipe `best`, h = 0.01, rd_weight = 0.05**",
        "soft",
        {"h": 0.01, "recipe": "best", "rd_weight": 0.05},
    ),
    (
        "**soft quantization, recipe `best`, h = 0.01, rd_weight = 0.2**",
        "soft",
        {"h": 0.01, "recipe": "best", "rd_weight": 0.2},
    ),
    (
        "recipe `best` without coupling (ablation), rd_weight = 0.2",
        "uncoupled",
        {"rd_weight": 0.2},
    ),
    ("PARQ (torchao), 3 bits", "parq", {"bits": 3}),
    ("PARQ (torchao), 2 bits", "parq", {"bits": 2}),
    ("k-means with trained codebooks, K = 4", "kmeans+ft", {"K": 4}),
    (
        "entropy-constrained k-means with trained codebooks, rd_weight = 0.2",
        "ecvq+ft",
        {"rd_weight": 0.2},
    ),
    (
        "soft quantization as in the paper, h = 0.1, 30 epochs",
        "soft",
        {"h": 0.1, "recipe": "paper"},
    ),
    ("histogram-equalized, 4 bits", "heq", {"bits": 4}),
)

# Label, key in cpu.json and peers of the rows of the table of speeds.
TIMED = (
    (
        "force step, all 20 layers of ResNet-20 (268,336 weights)",
        "force_step/ResNet-20/Gaussian",
        ("PyTorch", "NumPy + SciPy"),
    ),
    (
        "the same, 9 tight clusters in each layer",
        "force_step/ResNet-20/9 clusters",
        ("PyTorch", "NumPy + SciPy"),
    ),
    (
        "the same, all weights in one bin",
        "force_step/ResNet-20/one bin",
        ("PyTorch", "NumPy + SciPy"),
    ),
    (
        "force step, one layer of 1e6 weights",
        "force_step/1e6/Gaussian",
        ("PyTorch", "NumPy + SciPy"),
    ),
    (
        "histogram of 1e6 weights, 2^14 bins",
        "density/1e6/Gaussian",
        ("np.histogram", "torch.histc", "fast-histogram"),
    ),
    (
        "exact energy of 1e6 weights",
        "pairs/1e6/Gaussian/energy",
        ("direct sum, energy", "SciPy cKDTree, pairs only"),
    ),
    ("exact force on 1e6 weights", "pairs/1e6/Gaussian/force", ("direct sum",)),
    ("exact energy of 1e8 weights", "sorting/1e8/Gaussian", ("np.sort",)),
)


def read(name: str) -> dict[str, Any]:
    """A file of results."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def table(headings: Row, rows: list[Row]) -> str:
    """Markdown."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def comparison() -> str:
    """Methods on ResNet-20 and CIFAR-10."""
    content = read("comparison-cifar10.json")
    pretrained = f"{content['pretrained']['mean']:.2f}"
    rows = [("pretrained, float32", pretrained, "32", "–", f"{FLOAT32_KB:,.0f}")]
    for label, method, parameters in COMPARED:
        (point,) = (
            point
            for point in content["points"]
            if point["method"] == method and parameters.items() <= point["parameters"].items()
        )
        numbers = [
            f"{point['accuracy']['mean']:.2f}",
            f"{point['bits']['mean']:.2f}",
            f"{point['entropy_bits']['mean']:.2f}",
            f"{point['kilobytes']['mean']:.0f}",
        ]
        bold = "**" if label.startswith("**") else ""
        rows.append((label, *(f"{bold}{number}{bold}" for number in numbers)))
    return table(
        ("method", "test accuracy / %", "bits (log2 K)", "entropy bits", "kB on disk"), rows
    )


def speed() -> str:
    """Times of the core and of its peers on one thread."""
    found = {entry["key"]: entry for entry in read("cpu.json")["comparisons"]}
    rows = []
    for label, key, peers in TIMED:
        timings = {timing["name"]: timing for timing in found[key]["timings"]}
        own = found[key]["timings"][0]["seconds"]["median"]
        others = [
            f"{name} {duration(seconds)} ({ratio(seconds / own)}×)"
            + ("" if timings[name]["share"] == 1 else ", extrapolated from a part")
            for name in peers
            for seconds in [timings[name]["seconds"]["median"]]
        ]
        rows.append((label, duration(own), "; ".join(others)))
    return table(("case", "pysoftq", "compared with"), rows)


def ratio(value: float) -> str:
    """A ratio with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time with three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def default_run() -> str:
    """The default run on the digits, one thread; then the outcome for any number of threads."""
    threads = {
        number: {seed: [NetworkRow(**row) for row in networks] for seed, networks in runs.items()}
        for number, runs in read("digits.json")["threads"].items()
    }
    seeds = f"(threads: {', '.join(threads)}; seeds: {', '.join(threads['1'])})"
    outcome = f"{digits.sentence(threads)} {seeds}.\n"
    return digits.table(threads["1"]).partition("\n\n")[0] + "\n\n" + outcome


TABLES = {"comparison": comparison, "speed": speed, "digits": default_run}


def regenerated(text: str) -> str:
    """The README with all tables made anew."""
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> int:
    """Write README.md."""
    path = ROOT / "README.md"
    path.write_text(regenerated(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
