"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import density, force_step, pairs, potential
from benchmarks.harness import Comparison, Options, environment, markdown, write
from pysoftq import set_num_threads

CASES: dict[str, Callable[[Options], list[Comparison]]] = {
    "force_step": force_step.run,
    "pairs": pairs.run,
    "potential": potential.run,
    "density": density.run,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen cases; print them and write them as JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--threads", type=int, default=1, help="of the core and of PyTorch (1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contestant (2)")
    parser.add_argument("--full", action="store_true", help="with 1e8 weights (1.4 GiB of memory)")
    parser.add_argument("--cpu-time", action="store_true", help="not wall time; needs one thread")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    parser.add_argument("--name", help="of the files; the cases' names by default")
    chosen = parser.parse_args(arguments)
    unknown = [case for case in chosen.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}: wanted some of {', '.join(CASES)}")
    if chosen.cpu_time and chosen.threads > 1:
        parser.error("--cpu-time adds up the threads' times: it needs --threads 1")
    cases = chosen.cases or list(CASES)

    options = Options(chosen.threads, chosen.seconds, chosen.full, chosen.cpu_time)
    set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    machine = environment(options)
    comparisons = []
    for case in cases:
        print(f"{case} …", file=sys.stderr, flush=True)
        comparisons += CASES[case](options)
    print(markdown(machine, comparisons))
    name = chosen.name or ("all" if cases == list(CASES) else "-".join(cases))
    for path in write(chosen.output / name, machine, comparisons):
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
