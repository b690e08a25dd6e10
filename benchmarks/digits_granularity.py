"""Layers, channels and groups on the embedded default: ``python -m benchmarks.digits_granularity``.

The run of ``pysoftq compress`` with each granularity on three seeds. Histogram-equalized
quantization of the same pretrained networks gets codebooks of the same segments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.digits import spread
from pysoftq.baselines import histogram_equalize
from pysoftq.clusters.clusters import Clusters, join
from pysoftq.interaction.segments import segment_bounds
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.driver import compress
from pysoftq.run.folder import RunFolder
from pysoftq.run.networks import REFINED, NetworkRow, clusters_name
from pysoftq.run.observer import Silent
from pysoftq.run.outcome import clustered_row
from pysoftq.run.setup import Run
from pysoftq.run.summary import Summary

SEEDS = (0, 1, 2)
HEQ_BITS = (4, 3)
GRANULARITIES = ("layer", "channel", "group:128")
RESULTS = Path(__file__).parent / "results"


def networks(config: CompressConfig, path: Path) -> list[NetworkRow]:
    """Those of one run, which is done where it has not been; HEQ of the same segments."""
    folder = RunFolder(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of segments that are a point
        if not folder.report.exists():
            print(f"seed {config.seed}, {config.granularity}", file=sys.stderr, flush=True)
            compress(config, path, Silent())
        summary = Summary.read(folder.report)
        run = Run.start(config, folder, Silent())
        run.model.load_state_dict(load_file(folder.pretrained))
        run.couple()
    weights = {layer.name: layer.parameter.detach().clone() for layer in run.quantizer.layers}
    equalized = [
        clustered_row(
            run,
            f"HEQ-{bits}",
            {name: equalize(theta, config.granularity, bits) for name, theta in weights.items()},
        )
        for bits in HEQ_BITS
    ]
    run.model.load_state_dict(load_file(folder.soft))
    found = run.quantizer.clusters(config.bits)
    merged = run.quantizer.refine(found, 0, "levels", config.rd_weight)
    ours = clustered_row(run, "soft, merged by levels", merged)
    kept = ("pretrained", "soft", clusters_name(config.bits), REFINED)
    return [*(summary[name] for name in kept), ours, *equalized]


def equalize(theta: torch.Tensor, granularity: str, bits: int) -> Clusters:
    """HEQ of each segment of a tensor."""
    bounds = segment_bounds(theta.shape, granularity)
    parts = theta.reshape(-1).split(bounds.diff().tolist())
    return join([histogram_equalize(part, bits) for part in parts], bounds)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One row for each granularity and network: means over the seeds."""
    headings = ("granularity", "network", "test accuracy / %", "bits (log2 K)", "entropy bits")
    headings = (*headings, "codebooks / kB", "kB on disk")
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for row in run["networks"]:
            groups.setdefault((run["granularity"], row["name"]), []).append(row)
    for (granularity, name), rows in groups.items():
        if rows[0]["bits"] is None and granularity != GRANULARITIES[0] and name == "pretrained":
            continue  # the same networks
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        cells = (
            granularity,
            name,
            spread([100 * accuracy for accuracy in columns["accuracy"]], 1),
            "–" if None in columns["bits"] else spread(columns["bits"], 2),
            "–" if None in columns["entropy_bits"] else spread(columns["entropy_bits"], 2),
            f"{statistics.fmean(columns['codebook_bytes']) / 1000:.1f}",
            f"{statistics.fmean(columns['bytes_on_disk']) / 1000:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing in the folder and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits_granularity", description=__doc__
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--granularities", nargs="+", default=list(GRANULARITIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-granularity"), help="folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    runs = []
    for granularity, seed in product(chosen.granularities, chosen.seeds):
        config = make_config({"seed": seed, "granularity": granularity})
        rows = networks(config, chosen.runs / f"{granularity.replace(':', '-')}-{seed}")
        found = [asdict(row) for row in rows]
        runs.append({"granularity": granularity, "seed": seed, "networks": found})
    chosen.output.mkdir(parents=True, exist_ok=True)
    stem = chosen.output / "digits-granularity"
    stem.with_suffix(".json").write_text(json.dumps(runs, indent=2) + "\n")
    seeds = ", ".join(map(str, chosen.seeds))
    heading = f"# Layers, channels and groups on the embedded digits\n\nSeeds {seeds}.\n\n"
    stem.with_suffix(".md").write_text(heading + table(runs) + "\n")
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
