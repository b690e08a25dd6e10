"""Pretraining on other data than one quantizes on: ``python -m benchmarks.transfer``.

Digits: pretrained on all, on the digits 0 to 4, or on images that were moved; softly quantized on
all digits or on what was pretrained on. Every network is tested on the unchanged test images of all
ten digits. The settings are those of a quick sweep, a third of the default's epochs at three times
its learning rate.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.digits import RESULTS, spread
from pysoftq.artifact import load_compressed
from pysoftq.data.datasets import load_dataset
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import load_weights, restore
from pysoftq.run.config import make_config
from pysoftq.run.driver import compress
from pysoftq.run.evaluation import evaluate
from pysoftq.run.networks import REFINED
from pysoftq.run.observer import Silent

SEEDS = (0, 1, 2)
QUICK = {"epochs": 50, "lr": 0.003}
# (pretrained on, quantized on)
CASES = (
    ("digits", "digits"),
    ("digits:0-4", "digits"),
    ("digits:0-4", "digits:0-4"),
    ("digits:shifted", "digits"),
    ("digits:shifted", "digits:shifted"),
)


def run_case(source: str, target: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run, taken from its folder where it is there already; its networks on all digits."""
    config = make_config({"dataset": target, "pretrain_dataset": source, "seed": seed}, QUICK)
    resume = (folder / "config.yaml").is_file()
    summary = compress(config, folder, Silent(), resume=resume)
    data = load_dataset("digits", seed=seed)
    model = build_model(config.model, **data.model_shape)
    accuracies = {}
    for name in ("pretrained", "soft"):
        file = folder / f"{name}.safetensors"
        restore(model, load_weights(file), file)
        accuracies[name] = evaluate(model, data, data.test)[1]
    refined = load_compressed(folder / "compressed.safetensors")
    accuracies["refined"] = evaluate(refined, data, data.test)[1]
    row = summary[REFINED]
    return {
        "pretrained on": source,
        "quantized on": target,
        "seed": seed,
        **accuracies,
        "bits": row.bits,
        "entropy bits": row.entropy_bits,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Means ± standard deviations over the seeds, one line for each case."""
    names = ("pretrained", "soft", "refined")
    lines = [
        f"| pretrained on | quantized on | {' / % | '.join(names)} / % | bits | entropy bits |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for case in CASES:
        found = [row for row in rows if (row["pretrained on"], row["quantized on"]) == case]
        if found:
            cells = [spread([100 * row[name] for row in found], 1) for name in names]
            cells += [spread([row[name] for row in found], 2) for name in ("bits", "entropy bits")]
            lines.append(f"| {' | '.join((*case, *cells))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Do the runs of the seeds and write ``transfer.md`` and ``transfer.json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    rows = []
    for seed in chosen.seeds:
        for source, target in CASES:
            name = f"{source}-{target}-{seed}".replace(":", "")
            print(name, file=sys.stderr, flush=True)
            rows.append(run_case(source, target, seed, chosen.runs / name))
    settings = ", ".join(f"{name} {value}" for name, value in QUICK.items())
    page = (
        "# Transfer on the digits\n\n"
        f"Tested on all ten digits, unchanged; {settings}; mean ± standard deviation over the "
        f"seeds {', '.join(map(str, chosen.seeds))}.\n\n{table(rows)}\n"
    )
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "transfer.md").write_text(page, encoding="utf-8")
    (chosen.output / "transfer.json").write_text(
        json.dumps(rows, indent=2) + "\n", encoding="utf-8"
    )
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
