"""The embedded default over five seeds: ``python -m benchmarks.digits``.

Soft quantization with the defaults of ``pysoftq compress`` against histogram-equalized
quantization of the same pretrained networks. A seed determines the split of the images, the
pretrained network and all that follows. The defaults were chosen on the seeds 100 to 107; the seeds
reported here, 0 to 4, were not looked at before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import Options
from benchmarks.report import environment
from pysoftq.run.config import make_config
from pysoftq.run.driver import compress
from pysoftq.run.observer import Silent
from pysoftq.run.summary import NetworkRow

SEEDS = (0, 1, 2, 3, 4)
REFINED, BASELINE = "soft, refined", "HEQ-4"
RESULTS = Path(__file__).parent / "results"


def run_seed(seed: int, folder: Path, options: dict[str, Any]) -> tuple[NetworkRow, ...]:
    """One run of the driver with the defaults but ``options``; all networks it compared."""
    return compress(make_config({**options, "seed": seed}), folder, Silent()).networks


def better(networks: Sequence[NetworkRow]) -> bool:
    """Whether the refined network is both smaller and more accurate than 4-bit HEQ."""
    rows = {row.name: row for row in networks}
    ours, theirs = rows[REFINED], rows[BASELINE]
    if ours.bits is None or theirs.bits is None:
        raise ValueError(f"{REFINED} and {BASELINE} must have bit-widths")
    return ours.bits < theirs.bits and ours.accuracy > theirs.accuracy


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(runs: dict[int, tuple[NetworkRow, ...]]) -> str:
    """The networks as rows, means over the seeds, then each seed's accuracies."""
    lines = ["| network | test accuracy / % | bits (log2 K) | entropy bits | kB on disk |"]
    lines += ["|---|---|---|---|---|"]
    for name in [row.name for row in next(iter(runs.values()))]:
        rows = [row for networks in runs.values() for row in networks if row.name == name]
        bits = [row.bits for row in rows if row.bits is not None]
        entropy = [row.entropy_bits for row in rows if row.entropy_bits is not None]
        cells = (
            name,
            spread([100 * row.accuracy for row in rows], 1),
            spread(bits, 2) if bits else "32",
            spread(entropy, 2) if entropy else "–",
            f"{statistics.fmean(row.bytes_on_disk for row in rows) / 1000:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| seed | pretrained | {REFINED} (bits) | {BASELINE} | both better |"]
    lines += ["|---|---|---|---|---|"]
    for seed, networks in runs.items():
        rows = {row.name: row for row in networks}
        lines.append(
            f"| {seed} | {100 * rows['pretrained'].accuracy:.1f} "
            f"| {100 * rows[REFINED].accuracy:.1f} ({rows[REFINED].bits:.2f}) "
            f"| {100 * rows[BASELINE].accuracy:.1f} | {'yes' if better(networks) else 'no'} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds and write ``digits.md`` and ``digits.json``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits", description="Soft quantization of the embedded default."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="OPTION=VALUE", help="depart from the defaults"
    )
    chosen = parser.parse_args(arguments)
    options = {**dict(pair.split("=", 1) for pair in chosen.set), "threads": chosen.threads}

    runs: dict[int, tuple[NetworkRow, ...]] = {}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in chosen.seeds:
            print(f"seed {seed} …", file=sys.stderr, flush=True)
            runs[seed] = run_seed(seed, Path(scratch) / str(seed), options)
    seconds = (time.process_time() - started) / len(runs)

    config = make_config(options)
    settings = ", ".join(
        f"{name} = {getattr(config, name)}"
        for name in ("model", "h", "w", "n_min", "epochs", "batch_size", "lr", "weight_decay")
    )
    page = (
        f"# The embedded digits, seeds {', '.join(map(str, runs))}\n\n"
        f"{settings}; {seconds:.0f} s of CPU time a run. Mean ± standard deviation over the seeds; "
        f"settings chosen on other seeds.\n\n{table(runs)}\n"
    )
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "digits.md").write_text(page, encoding="utf-8")
    content = {
        "environment": environment(Options(chosen.threads, "full")),
        "config": config.model_dump(mode="json"),
        "cpu_seconds": seconds,
        "seeds": {seed: [asdict(row) for row in networks] for seed, networks in runs.items()},
    }
    text = json.dumps(content, indent=2) + "\n"
    (chosen.output / "digits.json").write_text(text, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
