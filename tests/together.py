"""What each of several processes does that run `pysoftq compress` together."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_digits

from pysoftq.cli import compress as command
from pysoftq.cli.main import main
from pysoftq.errors import PeerError
from pysoftq.models.build import build_model
from pysoftq.run import driver
from pysoftq.run import processes as exchange
from pysoftq.run.batch_norm import normalise_together
from pysoftq.run.config import make_config
from pysoftq.run.evaluation import evaluate
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.processes import Processes, joined
from pysoftq.run.step import TrainingStep

OPTIONS = [
    *("--model", "digits-resnet-small", "--epochs", "2", "--lr", "0.02", "--batch-size", "256"),
    *("--seed", "1", "--split-seed", "0"),
]
PAPER = ["--recipe", "paper"]
TARGET = ["--target-bits", "2", "--max-drop", "0", "--epochs", "1", "--codebook-epochs", "1"]
TARGET += ["--validation", "0.1"]
FRONT = ["--front", "6kB,4kB", "--epochs", "1", "--codebook-epochs", "1"]
BATCHES = ((0, 7), (7, 8), (8, 40))  # of examples: uneven, fewer than processes, even


def call(*arguments: str) -> tuple[int, str, str]:
    """The exit code of the command line and what it prints."""
    sys.argv = ["pysoftq", *arguments]
    code: Any = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def trained(processes: Processes) -> tuple[dict[str, torch.Tensor], Any]:
    """A network after three steps in float64, and its loss and accuracy in float32."""
    torch.manual_seed(0)
    model = build_model("digits-resnet-small", 10, 1).double()
    if processes.several:
        normalise_together(model)
    data = tiny_digits(test=61)
    config = make_config({"lr": 0.1})
    optimizer = make_optimizer(model, config.lr, 0.9, 0.0)
    step = TrainingStep(model, optimizer, config, 8, processes=processes)
    model.train()
    for begin, end in BATCHES:
        part = processes.share.part(slice(begin, end))
        images = data.normalize(data.train.pixels[part.place])
        step(images.double(), data.train.labels[part.place], part)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights, evaluate(model.float(), data, data.test, processes)


def fail_in(rank: int, processes: Processes) -> str:
    """What a failure of one process looks like in this one."""

    def work() -> None:
        if processes.rank == rank:
            raise OSError(f"no data on {rank}")

    try:
        processes.together(work)
    except (OSError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def compare_different(processes: Processes) -> str:
    """What processes of different networks are told."""
    try:
        processes.compare({"bytes_predicted": 100 + processes.rank})
    except ValueError as error:
        return str(error)
    return ""


def stop_after(steps: int) -> None:
    """Ask the second process alone to stop after some steps."""
    original = driver.finetune

    def finetune(run: Any, optimizer: Any, state: Any, stop: Any) -> None:
        class Watch:
            @property
            def asked(self) -> bool:
                return state.step >= steps and not run.processes.leads

        driver.finetune = original
        original(run, optimizer, state, Watch())

    driver.finetune = finetune


def run_together(folder: Path, weights: str) -> None:
    """Call the command several times, and write what this process sees to FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    command._draw = lambda path: [path]
    with joined() as processes:
        # A process joins the others once.
        exchange.joined = lambda: nullcontext(processes)
        found = {"trained": trained(processes)}
        found["failures"] = [fail_in(rank, processes) for rank in range(processes.size)]
        found["different"] = compare_different(processes)
        found |= commands(folder, weights)
        torch.save(found, folder / f"{processes.rank}.pt")


def commands(folder: Path, weights: str) -> dict[str, Any]:
    """What each command has returned and printed."""
    given = [*OPTIONS, "--weights", weights]
    sharded = str(folder / "sharded")
    found = {
        "refused": call("compress", *given, "--compile", "--out", str(folder / "refused")),
        "paper": call("compress", *given, *PAPER, "--strict", "--out", str(folder / "paper")),
    }
    stop_after(3)
    found["stopped"] = call("compress", *given, *PAPER, "--shard", "--out", sharded)
    found["resumed"] = call("compress", "--resume", sharded, "--shard")
    few = ["--epochs", "1", "--pretrain-epochs", "1", "--codebook-epochs", "1"]
    best = ["compress", *OPTIONS, *few, "--rd-weight", "0.05"]
    found["best"] = call(*best, "--out", str(folder / "best"))
    found["best sharded"] = call(*best, "--shard", "--out", str(folder / "best sharded"))
    target = ["compress", *given, *TARGET]
    found["target"] = call(*target, "--out", str(folder / "target"))
    sharded = str(folder / "target sharded")
    stop_after(8)  # after merging
    found["target stopped"] = call(*target, "--shard", "--out", sharded)
    found["target resumed"] = call("compress", "--resume", sharded, "--shard")
    front = ["compress", *given, *FRONT]
    found["front"] = call(*front, "--out", str(folder / "front"))
    found["front sharded"] = call(*front, "--shard", "--out", str(folder / "front sharded"))
    return found
