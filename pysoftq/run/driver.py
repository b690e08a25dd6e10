"""A whole run: data, pretrained network, soft quantization, comparison, files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from pysoftq.data.tasks import Data
from pysoftq.errors import ConfigError
from pysoftq.paths import user_path
from pysoftq.run.checkpoint import load_checkpoint
from pysoftq.run.config import CompressConfig, changed_options, make_config, read_config
from pysoftq.run.finetune import finetune
from pysoftq.run.folder import RunFolder, open_run
from pysoftq.run.interrupt import stop_on_signals
from pysoftq.run.observer import Observer
from pysoftq.run.optimizers import check_optimizer, make_optimizer
from pysoftq.run.outcome import finish
from pysoftq.run.pretrain import load_pretrained
from pysoftq.run.processes import ALONE, Processes
from pysoftq.run.setup import Run, check_processes, choose_device, set_threads
from pysoftq.run.state import RunState
from pysoftq.run.step import own_stream
from pysoftq.run.summary import Summary


def compress(
    config: CompressConfig,
    path: Path,
    observer: Observer,
    *,
    resume: bool = False,
    data: Data | None = None,
    processes: Processes = ALONE,
) -> Summary:
    """Run ``config`` in the folder ``path``, or resume the run that is there.

    A finished run that is resumed does its final comparison and report anew. ``data`` is what
    `read_data` gives, for a caller who has it already. Figures are drawn from the folder by
    `pysoftq.analysis.figures.draw_run`. Several ``processes`` make the same call and get the same
    summary; the first one writes the files and reports to ``observer``.

    Raises ConfigError where the folder holds a run and ``resume`` is not set (or the other way
    round), or files that a run would take for its own, and where the run to resume had other
    options; Interrupted after SIGINT or SIGTERM during pretraining or training, with a checkpoint
    written.
    """
    check_processes(config, processes)
    check_optimizer(config)
    if not resume:
        processes.lead(lambda: _check_weights(config))
    device = processes.together(lambda: choose_device(config, processes))
    with ExitStack() as held:
        folder = RunFolder(path)

        def begin() -> None:
            nonlocal folder
            folder = held.enter_context(open_run(path))
            _check_folder(config, folder, resume=resume)
            if not resume:
                config.to_yaml(folder.config)  # from now on there is a run to resume

        processes.lead(begin)
        set_threads(config.threads)
        torch.manual_seed(config.seed)
        try:
            with own_stream(device):
                return complete(Run.start(config, folder, observer, data, processes))
        except Exception:
            if processes.leads and not resume and not folder.begun:
                folder.clear()
            raise


def complete(run: Run) -> Summary:
    """Do all of a run that is still to do."""
    config, folder, processes = run.config, run.folder, run.processes
    run.check()
    pretrained = load_pretrained(run)
    run.couple()
    optimizer = make_optimizer(
        run.model, config.lr, config.momentum, config.weight_decay, config.optimizer
    )
    torch.manual_seed(config.seed)  # the same whether or not pretraining drew numbers
    state = RunState()
    if processes.lead(folder.checkpoint.is_file):
        state = load_checkpoint(run, optimizer)
        processes.lead(lambda: folder.write_metrics(state.metrics))
    processes.lead(lambda: config.to_yaml(folder.config))  # some options may be new on resuming
    run.observer.on_start(config, run.data, state)
    with stop_on_signals(launched=processes.launched) as stop:
        finetune(run, optimizer, state, stop)
    del optimizer  # and the gradients: their memory is needed for the comparison
    run.model.zero_grad(set_to_none=True)
    run.observer.message("comparing the networks")
    return finish(run, state, pretrained)


def _check_weights(config: CompressConfig) -> None:
    if config.weights is not None and not user_path(config.weights).exists():
        raise ConfigError(f"option 'weights': there is no {config.weights}")


def _check_folder(config: CompressConfig, folder: RunFolder, *, resume: bool) -> None:
    path = folder.path
    if folder.exists and not resume:
        raise ConfigError(f"{path} holds a run already: resume it, or choose another folder")
    if resume and not folder.exists:
        raise ConfigError(f"{path} holds no run to resume")
    if resume:
        refuse_changes(config, folder)
    elif folder.files:
        names = ", ".join(file.name for file in folder.files)
        raise ConfigError(f"{path} holds {names}, but no run: choose another folder")


def refuse_changes(config: CompressConfig, folder: RunFolder) -> None:
    """Raise ConfigError where an option that shapes the training is not that of the folder."""
    saved = make_config(read_config(folder.config)).model_dump(mode="json")
    if changed := changed_options(saved, config):
        raise ConfigError(f"the run cannot be resumed with other options: {', '.join(changed)}")
