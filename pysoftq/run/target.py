"""A run with a target: how its `Compressor` takes part in the training, and what it reports."""

from __future__ import annotations

import warnings

from torch.optim import Optimizer

from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.rungs import asked_for, rungs_of
from pysoftq.errors import QualityWarning
from pysoftq.models.weight_files import save_state
from pysoftq.run.evaluation import evaluate
from pysoftq.run.front_files import record_rung
from pysoftq.run.optimizers import fill_lr, set_lr, trained_lr
from pysoftq.run.setup import Run
from pysoftq.run.sharding import kept_state


def attach(run: Run, compressor: Compressor, optimizer: Optimizer, steps: int) -> None:
    """Let the compressor take part in so many steps, and report what it does.

    The quality before compression is measured here, if data are held out and it is not known.
    """
    task, validation = run.data.task, run.validation

    def quality() -> float:
        assert validation is not None
        return task.quality(*evaluate(run.model, run.data, validation, run.processes, varied=True))

    compressor.on_strength = lambda found: run.observer.message(strength_line(found))
    compressor.before_merging = lambda found: end_coupling(run, found)
    compressor.on_rung = lambda found: end_rung(run, found)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", QualityWarning)
        compressor.attach(
            optimizer, total_steps=steps, evaluate=None if validation is None else quality
        )
    for warning in told:
        run.observer.message(str(warning.message))


def end_coupling(run: Run, compressor: Compressor) -> None:
    """Write the weights as the coupling leaves them, and say which networks follow."""
    if len(compressor.path) > len(compressor.targets):
        names = [
            f"{target.bits:.3g} bits" if target.bytes is None else f"{target.bytes:,} bytes"
            for target in compressor.path
        ]
        run.observer.message(f"training of clusters: to {', then '.join(names)}")
    soft = kept_state(run.model, run.processes)
    run.processes.lead(lambda: save_state(soft, run.folder.soft))


def set_scheduled_lr(run: Run, optimizer: Optimizer, step: int, steps: int) -> None:
    """Give an optimizer the learning rate of a step.

    The schedule is that of the coupled training. After it the compressor lowers it to 0.
    """
    config, compressor = run.config, run.compressor
    if compressor is None:
        set_lr(optimizer, config, step / steps)
    elif compressor.phase == "coupling":
        set_lr(optimizer, config, step / compressor.coupling_steps)
    else:
        fill_lr(optimizer, trained_lr(config))


def strength_line(compressor: Compressor) -> str:
    """One line on the force of the coupling compared with the gradients of the first step."""
    found = compressor.strength
    assert found is not None
    if not found.h:
        return "coupling: none, h is 0"
    (low, least), (high, most) = (
        pick((ratio, name) for name, ratio in found.ratios.items()) for pick in (min, max)
    )
    return (
        f"coupling: h {found.h:g}, force {found.ratio:.3g} times the gradient "
        f"({low:.3g} in {least}, {high:.3g} in {most}), {found.steps:,.0f} steps to cross a well"
    )


def end_rung(run: Run, compressor: Compressor) -> None:
    """Report the rung that ends; of a front, write its file."""
    run.observer.message(rung_line(run, compressor))
    if run.config.front is not None:
        record_rung(run, compressor)


def rung_line(run: Run, compressor: Compressor) -> str:
    """One line on the rung that ends: its size against the target, and its quality."""
    rung = compressor.rungs[-1]
    target = run.config.target or rung.target
    of_bytes = "" if target.bytes is None else f" of {target.bytes:,}"
    of_bits = "" if target.bits is None else f" of {target.bits:g}"
    text = f"{rung.bytes:,}{of_bytes} bytes, {rung.bits:.3f}{of_bits} bits per weight"
    text += f" ({run.config.coding})"
    if (count := rungs_of(compressor.targets)) > 1:
        text = f"network {len(asked_for(compressor.rungs))} of {count}: {text}"
    if rung.drop is not None:
        text += f", {rung.drop:.2f} {run.data.task.lost} lost on validation"
    if rung.drop is not None and target.max_drop is not None:
        bound = "at most" if rung.within(target.max_drop) else "more than"
        text += f" ({bound} {target.max_drop:g})"
    return text
