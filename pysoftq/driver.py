"""A whole run: data, pretrained network, soft quantization, comparison, files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from pysoftq.artifact import save_compressed
from pysoftq.atomic import atomic_write
from pysoftq.baselines import histogram_equalize
from pysoftq.checkpoint import RunState, load_checkpoint
from pysoftq.clustering import ClusteringConfig, prepare
from pysoftq.clusters import Clusters, mean_bit_width, unique
from pysoftq.codebook import train_codebooks
from pysoftq.config import (
    CompressConfig,
    ConfigError,
    changed_options,
    make_config,
    read_config,
    write_config,
)
from pysoftq.coupling import CoupledLayer, SoftQuantizer
from pysoftq.data import read_data, read_pretraining_data
from pysoftq.finetune import Observer, evaluate, finetune
from pysoftq.huggingface import is_folder_model
from pysoftq.interrupt import stop_on_signals
from pysoftq.models import build_model
from pysoftq.pretrain import pretrain_or_reuse
from pysoftq.recording import Part, figure_part, followed_part, snapshot
from pysoftq.report import NetworkRow, Summary, TrainingSpeed
from pysoftq.runfolder import RunFolder, open_run
from pysoftq.tasks import Data
from pysoftq.threads import set_num_threads
from pysoftq.training import make_optimizer, own_stream
from pysoftq.weights import cpu_state, load_weights, restore, save_state, stored_once

HEQ_BITS = (5, 4, 3, 2)


class RunObserver(Observer, Protocol):
    """Is told about a whole run."""

    def message(self, text: str) -> None:
        """One line of news."""

    def on_start(self, config: CompressConfig, data: Data, state: RunState) -> None:
        """Before the first step of this process."""


def compress(
    config: CompressConfig,
    path: Path,
    observer: RunObserver,
    *,
    resume: bool = False,
    data: Data | None = None,
    figures: bool = True,
) -> Summary:
    """Run ``config`` in the folder ``path``, or go on with the run that is there.

    A finished run that is resumed does its final comparison, report and figures anew. ``data`` is
    what ``read_data`` gives, for one who has it already.

    Raises ConfigError where the folder holds a run and ``resume`` is not set (or the other way
    round), or files that a run would take for its own, and where the run to resume had other
    options; Interrupted after SIGINT or SIGTERM during pretraining or training, with a checkpoint
    written.
    """
    device = choose_device(config)
    with open_run(path) as folder:
        if folder.exists and not resume:
            raise ConfigError(f"{path} holds a run already: resume it, or choose another folder")
        if resume and not folder.exists:
            raise ConfigError(f"{path} holds no run to resume")
        if resume:
            refuse_changes(config, folder)
        elif folder.files:
            names = ", ".join(file.name for file in folder.files)
            raise ConfigError(f"{path} holds {names}, but no run: choose another folder")
        set_threads(config.threads)
        torch.manual_seed(config.seed)
        if not resume:
            write_config(config, folder.config)  # from now on there is a run to resume
        try:
            with own_stream(device):
                return run(config, folder, device, observer, data=data, figures=figures)
        except Exception:
            if not resume and not folder.begun:
                folder.clear()
            raise


def run(
    config: CompressConfig,
    folder: RunFolder,
    device: torch.device,
    observer: RunObserver,
    *,
    data: Data | None = None,
    figures: bool = True,
) -> Summary:
    """All of a run that is still to do, in its locked folder."""
    if data is None:
        observer.message(f"loading {config.dataset}")
        data = read_data(config)
    data = data.to(device)
    model = make_model(config, data, device)
    pretrained = load_pretrained(model, data, config, folder, observer)

    softq = prepare(model, ClusteringConfig.of(config))
    optimizer = make_optimizer(
        model, config.lr, config.momentum, config.weight_decay, config.optimizer
    )
    torch.manual_seed(config.seed)  # the same whether or not pretraining drew numbers
    state = RunState()
    if folder.checkpoint.is_file():
        state = load_checkpoint(
            folder.checkpoint, config, data.fingerprint(), model, optimizer, softq
        )
        folder.write_metrics(state.metrics)
    write_config(config, folder.config)  # of a resumed run, some options may be new
    observer.on_start(config, data, state)
    with stop_on_signals() as stop:
        finetune(model, optimizer, softq, data, config, folder, state, observer, stop)

    observer.message("comparing the networks")
    summary = finish(model, softq, data, config, folder, state, pretrained, observer)
    if figures:
        draw(folder)
    return summary


def make_model(config: CompressConfig, data: Data, device: torch.device) -> nn.Module:
    """The untrained network for ``data``, on the device."""
    model = build_model(config.model, **data.model_shape)
    layout = memory_format(config, device)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    return model


def finish(
    model: nn.Module,
    softq: SoftQuantizer,
    data: Data,
    config: CompressConfig,
    folder: RunFolder,
    state: RunState,
    pretrained: dict[str, Tensor],
    observer: RunObserver,
) -> Summary:
    """Clusters, comparison with the baselines, and the files that a finished run leaves."""
    soft = cpu_state(model)
    save_state(soft, folder.soft)
    layers = softq.layers
    shown = figure_part(softq)
    weights = {"weights_soft": snapshot(shown.weights())}

    networks = [
        float_row("pretrained", model, data, folder, pretrained),
        float_row("soft", model, data, folder, soft),
    ]
    found = list(softq.clusters(config.cluster_bits).values())
    name = f"soft, {config.cluster_bits}-bit clusters"
    networks.append(clustered_row(name, model, data, config, folder, layers, found))

    model.load_state_dict(soft)
    report = softq.finalize(config.cluster_bits, config.n_min, config.refine, config.bit_price)
    if config.codebook_epochs:
        merged = {layer.name: unique(layer.parameter, softq.bounds(layer)) for layer in layers}
        name = "soft, refined, before training"
        before = list(merged.values())
        networks.append(clustered_row(name, model, data, config, folder, layers, before))
        observer.message(
            f"training the codebooks: {config.codebook_epochs} epochs after those {config.epochs}"
        )
        train_refined(model, softq, merged, soft, data, config, observer.message)
    weights["weights_final"] = snapshot(shown.weights())
    write_compressed(model, data, config, folder.compressed)
    # What has been written.
    refined = {layer.name: unique(layer.parameter, softq.bounds(layer)) for layer in layers}
    found = list(refined.values())
    networks.append(clustered_row("soft, refined", model, data, config, folder, layers, found))
    report = report.with_clusters(refined)

    model.load_state_dict(pretrained)
    weights["weights_pretrained"] = snapshot(shown.weights())
    for bits in HEQ_BITS:
        model.load_state_dict(pretrained)
        equalized = [histogram_equalize(layer.parameter.detach(), bits) for layer in layers]
        networks.append(
            clustered_row(f"HEQ-{bits}", model, data, config, folder, layers, equalized)
        )

    speed = TrainingSpeed.of(state.metrics)
    summary = Summary(tuple(networks), report, dict(softq.excluded), speed, data.task.name)
    write_records(folder, state, shown, followed_part(softq), config, weights)
    write_report(folder, summary, config, state)
    return summary


def train_refined(
    model: nn.Module,
    softq: SoftQuantizer,
    clusters: dict[str, Clusters],
    soft: Mapping[str, Tensor],
    data: Data,
    config: CompressConfig,
    message: Callable[[str], None] | None = None,
) -> None:
    """Train the codebooks of the refined clusters, and the ``soft`` weights where they may move.

    A run that is stopped here repeats this part. Raises Interrupted after SIGINT or SIGTERM.
    """
    coded = config.coding == "entropy" and config.refine != "count"
    prices = softq.prices(config.bit_price if coded else 0.0)
    with stop_on_signals() as stop:
        train_codebooks(
            model,
            clusters,
            data,
            config,
            epochs=config.codebook_epochs,
            lr=config.codebook_lr,
            weights={name: soft[name] for name in clusters} if config.weights_lr else None,
            weights_lr=config.weights_lr,
            prices=prices,
            first_epoch=config.epochs,
            message=message,
            stop=stop,
        )


def load_pretrained(
    model: nn.Module,
    data: Data,
    config: CompressConfig,
    folder: RunFolder,
    observer: RunObserver,
) -> dict[str, Tensor]:
    """Put the weights that the run began with into the model, and keep them in the folder.

    They are the run's own where it has got so far, else those given or that the model brought
    along, else pretrained ones, on other data where ``pretrain_dataset`` says so.
    """
    brought = is_folder_model(config.model)
    if config.pretrain_dataset is not None and brought:
        raise ConfigError("option 'pretrain_dataset': the network comes with its weights already")
    given = folder.pretrained if folder.pretrained.is_file() else config.weights
    if given is not None:
        restore(model, load_weights(given), given)
    elif not brought:
        other = read_pretraining_data(config)
        source = data if other is None else other.to(next(model.parameters()).device)
        learner = learner_of(model, data, source, config)
        with stop_on_signals() as stop:
            pretrain_or_reuse(learner, source, config, folder.pretraining, observer.message, stop)
        if learner is not model:
            transfer(learner, model, observer.message)
    state = cpu_state(model)
    if given != folder.pretrained:
        save_state(state, folder.pretrained)
    folder.pretraining.unlink(missing_ok=True)
    return state


def learner_of(model: nn.Module, data: Data, source: Data, config: CompressConfig) -> nn.Module:
    """The network to pretrain on ``source``: ``model`` itself, if the classes are as many.

    Raises ConfigError where inputs of ``source`` do not fit a network for ``data``.
    """
    shape, wanted = source.model_shape, data.model_shape
    for name in sorted(shape.keys() | wanted.keys()):
        if name != "num_classes" and shape.get(name) != wanted.get(name):
            raise ConfigError(
                f"a network for {config.dataset} cannot be pretrained on {config.pretrain_dataset}:"
                f" {name} is {wanted.get(name)} of the one, {shape.get(name)} of the other"
            )
    if shape == wanted:
        return model
    return make_model(config, source, next(model.parameters()).device)


def transfer(learner: nn.Module, model: nn.Module, message: Callable[[str], None]) -> None:
    """Give ``model`` what ``learner`` has learnt; the head, of other classes, stays as it was."""
    learnt, state = cpu_state(learner), model.state_dict()
    head = [name for name, value in state.items() if learnt[name].shape != value.shape]
    model.load_state_dict({**learnt, **{name: state[name] for name in head}})
    message(f"begun anew, for other classes: {', '.join(head)}")


def refuse_changes(config: CompressConfig, folder: RunFolder) -> None:
    """Raise ConfigError where an option that shapes the training is not that of the folder."""
    saved = make_config(read_config(folder.config)).model_dump(mode="json")
    if changed := changed_options(saved, config):
        raise ConfigError(f"the run cannot be resumed with other options: {', '.join(changed)}")


def float_row(
    name: str, model: nn.Module, data: Data, folder: RunFolder, state: dict[str, Tensor]
) -> NetworkRow:
    """A network in float32."""
    model.load_state_dict(state)
    loss, accuracy = evaluate(model, data, data.test)
    size = written_size(folder, lambda path: path.write_bytes(save(stored_once(model))))
    return NetworkRow(name, accuracy, None, None, None, size, loss)


def clustered_row(
    name: str,
    model: nn.Module,
    data: Data,
    config: CompressConfig,
    folder: RunFolder,
    layers: Iterable[CoupledLayer],
    clusters: list[Clusters],
) -> NetworkRow:
    """The network with its coupled layers replaced by clusters; the rest is as in ``model``."""
    for layer, found in zip(layers, clusters, strict=True):
        with torch.no_grad():
            layer.parameter.copy_(found.weights(layer.parameter.shape))
    sizes = [found.size for found in clusters]
    loss, accuracy = evaluate(model, data, data.test)
    return NetworkRow(
        name,
        accuracy=accuracy,
        bits=mean_bit_width(sizes, [found.bits for found in clusters]),
        container_bits=mean_bit_width(sizes, [found.container_bits for found in clusters]),
        entropy_bits=mean_bit_width(sizes, [found.entropy_bits for found in clusters]),
        codebook_bytes=sum(found.codebook_bytes for found in clusters),
        bytes_on_disk=written_size(
            folder, lambda path: write_compressed(model, data, config, path)
        ),
        loss=loss,
    )


def write_compressed(model: nn.Module, data: Data, config: CompressConfig, path: Path) -> None:
    """The compressed file, which also keeps what the network takes as its input."""
    save_compressed(
        model,
        path,
        coding=config.coding,
        granularity=config.granularity,
        metadata=data.metadata(),
    )


def written_size(folder: RunFolder, write: Callable[[Path], Any]) -> int:
    """Bytes of the file that ``write`` makes."""
    path = folder.path / ".measured.safetensors"
    try:
        write(path)
        return path.stat().st_size
    finally:
        path.unlink(missing_ok=True)


def write_records(
    folder: RunFolder,
    state: RunState,
    shown: Part,
    followed: Part,
    config: CompressConfig,
    weights: dict[str, Tensor],
) -> None:
    """The arrays that the figures are drawn from."""
    early = state.early if state.early is not None else weights["weights_soft"]
    arrays: dict[str, Any] = {
        "layer": np.asarray(shown.name),
        "width": np.asarray(shown.width),
        "strength": np.asarray(shown.strength),
        "bins": np.asarray(config.bins),
        "cluster_bits": np.asarray(config.cluster_bits),
        "weights_early": early.numpy(),
        **{name: value.numpy() for name, value in weights.items()},
        "trajectory_layer": np.asarray(followed.name),
        "trajectory_width": np.asarray(followed.width),
        "trajectory_steps": np.asarray(state.trajectory_steps),
        "trajectories": torch.stack(state.trajectories).numpy(),
        "density_steps": np.asarray(state.density_steps),
        "densities": torch.stack(state.densities).numpy(),
        "density_ranges": torch.stack(state.density_ranges).numpy(),
    }
    with atomic_write(folder.records) as temporary:
        np.savez_compressed(temporary, **arrays)


def write_report(
    folder: RunFolder, summary: Summary, config: CompressConfig, state: RunState
) -> None:
    """report.json and report.txt."""
    content = {
        **summary.to_dict(),
        "config": config.model_dump(mode="json"),
        "steps": state.step,
    }
    text = io.StringIO()
    console = Console(file=text, width=200)
    layers = summary.layers
    console.print(layers.table(), *summary.remarks(), summary.table(), sep="\n")
    console.print(layers.coverage_table(), layers.tensor_table())
    for path, body in (
        (folder.report, json.dumps(content, indent=2) + "\n"),
        (folder.report_text, text.getvalue()),
    ):
        with atomic_write(path) as temporary:
            Path(temporary).write_text(body, encoding="utf-8")


def draw(folder: RunFolder) -> None:
    """Figures of the run; matplotlib is loaded only now."""
    from pysoftq.analysis.figures import draw_run

    draw_run(folder.path)


def choose_device(config: CompressConfig) -> torch.device:
    """The device asked for; ``auto`` takes CUDA where it is present, else the CPU.

    MPS is used only when asked for: it lacks float64, which some of PyTorch's own steps want.

    Raises ConfigError where the device asked for is missing, or cannot do what is asked of it.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if gpus else "cpu") if config.device == "auto" else config.device)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"option 'device': there is no {device} here, {gpus} CUDA devices in all")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("option 'device': there is no mps device here")
    if device.type != "cuda" and config.graph == "on":
        raise ConfigError(
            f"option 'graph': CUDA graphs need a CUDA device, and this run is on {device.type}; "
            "leave it at auto, or choose device cuda"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True
    return device


def memory_format(config: CompressConfig, device: torch.device) -> torch.memory_format:
    """How weights lie in memory.

    A GPU's tensor cores want the channels side by side. On a CPU that gains nothing: the images
    come so already, and oneDNN reorders the weights, which are few.
    """
    on = device.type == "cuda" if config.channels_last == "auto" else config.channels_last == "on"
    return torch.channels_last if on else torch.preserve_format


def set_threads(count: int | None) -> None:
    """Threads of both PyTorch and the core; None leaves each its own choice."""
    if count is not None:
        torch.set_num_threads(count)
        set_num_threads(count)
