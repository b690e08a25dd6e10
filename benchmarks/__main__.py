"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks import (
    bandwidth,
    coding,
    density,
    files,
    force_step,
    granularity,
    growth,
    memory,
    pairs,
    palettes,
    potential,
    sorting,
    training_step,
    whole_model,
)
from benchmarks.harness import SIZES, Comparison, Options, threads
from benchmarks.report import environment, markdown, write

CASES: dict[str, Callable[[Options], Iterable[Comparison]]] = {
    "force_step": force_step.run,
    "granularity": granularity.run,
    "density": density.run,
    "potential": potential.run,
    "pairs": pairs.run,
    "sorting": sorting.run,
    "bandwidth": bandwidth.run,
    "training_step": training_step.run,
    "memory": memory.run,
    "growth": growth.run,
    "coding": coding.run,
    "files": files.run,
    "whole_model": whole_model.run,
    "palettes": palettes.run,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen cases; print them and write them as JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--size", choices=SIZES, default="quick", help="quick: two minutes")
    parser.add_argument(
        *("--full",), dest="size", action="store_const", const="full", help="up to 1e8 weights"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the core and the peers (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    parser.add_argument("--name", help="of the files; from device, cases and size by default")
    parser.add_argument(
        *("--no-compile",), dest="compile", action="store_false", help="no torch.compile, no KeOps"
    )
    chosen = parser.parse_args(arguments)
    if unknown := [case for case in chosen.cases if case not in CASES]:
        parser.error(f"unknown case {', '.join(unknown)}: expected some of {', '.join(CASES)}")
    if chosen.threads < 1:
        parser.error(f"--threads must be at least 1, got {chosen.threads}")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")

    options = Options(chosen.threads, chosen.size, chosen.device, chosen.output, chosen.compile)
    cases = chosen.cases or list(CASES)
    # KeOps asks OpenMP, which reads this when the first kernel is loaded.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    machine = environment(options)
    parts = [options.device, *chosen.cases] + [options.size] * (options.size != "full")
    stem = options.output / (chosen.name or "-".join(parts))
    comparisons: list[Comparison] = []
    written: tuple[Path, ...] = ()
    with threads(options.threads):
        for case in cases:
            start = time.perf_counter()
            print(f"{case} …", file=sys.stderr, flush=True)
            for comparison in CASES[case](options):
                comparisons.append(comparison)
                # Each at once: a suite that is stopped leaves what it has measured.
                written = write(stem, options.device, machine, comparisons)
                seconds = time.perf_counter() - start
                print(f"  {comparison.key}, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(markdown(options.device, machine, comparisons))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
