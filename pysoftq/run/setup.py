"""What a run works with: options, folder, device, data, network."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.datasets import load_dataset
from pysoftq.data.names import TEXTS
from pysoftq.data.tasks import Data
from pysoftq.data.text import read_text
from pysoftq.errors import ConfigError
from pysoftq.interaction.threads import set_num_threads
from pysoftq.models.build import build_model
from pysoftq.models.huggingface import FolderTokenizer, is_folder_model
from pysoftq.run.batches import check_batches
from pysoftq.run.config import CompressConfig
from pysoftq.run.folder import RunFolder
from pysoftq.run.observer import Observer


@dataclass
class Run:
    """One run and all that its stages work with.

    Attributes:
        config: its options.
        folder: where its files are; locked.
        device: where the network and the data are.
        observer: receives its progress.
        data: training and test data.
        model: the network, untrained at first.
        quantizer: the coupling of its weights, from `couple` on.
    """

    config: CompressConfig
    folder: RunFolder
    device: torch.device
    observer: Observer
    data: Data
    model: nn.Module
    quantizer: SoftQuantizer = field(init=False, repr=False)

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        folder: RunFolder,
        observer: Observer,
        data: Data | None = None,
    ) -> Run:
        """Read the data, unless given, and build the network.

        Raises ConfigError as `choose_device` and `check_batches` do, and whatever is wrong with
        data or network.
        """
        device = choose_device(config)
        if data is None:
            observer.message(f"loading {config.dataset}")
            data = read_data(config)
        data = data.to(device)
        model = make_model(config, data, device)
        check_batches(model, data, config.batch_size, "batch_size")
        if (count := len(data.train)) < config.batch_size:
            observer.message(
                f"a batch holds all {count} training examples: `batch_size` is {config.batch_size}"
            )
        return cls(config, folder, device, observer, data, model)

    def couple(self) -> None:
        """Measure the layers of the network, which holds its pretrained weights."""
        self.quantizer = prepare(self.model, self.config)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the data."""
        return self.data.fingerprint()


def make_model(config: CompressConfig, data: Data, device: torch.device) -> nn.Module:
    """The untrained network for ``data``, on the device."""
    model = build_model(config.model, **data.model_shape)
    layout = memory_format(config, device)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    return model


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

    A GPU's tensor cores require the channels side by side. On a CPU that gains nothing: the images
    come so already, and oneDNN reorders the weights, which are few.
    """
    on = device.type == "cuda" if config.channels_last == "auto" else config.channels_last == "on"
    return torch.channels_last if on else torch.preserve_format


def set_threads(count: int | None) -> None:
    """Threads of both PyTorch and the core; None leaves each its own choice."""
    if count is not None:
        torch.set_num_threads(count)
        set_num_threads(count)


def read_data(config: CompressConfig) -> Data:
    """The data that the options of a run ask for: text for ``pydoc`` and ``text:FILE``.

    Raises as ``load_dataset`` and ``read_text`` do.
    """
    if config.dataset.partition(":")[0] in TEXTS:
        model = config.model
        tokenizer = FolderTokenizer(model) if is_folder_model(model) else None
        return read_text(config.dataset, config.context, tokenizer)
    return load_dataset(
        config.dataset,
        seed=config.seed if config.split_seed is None else config.split_seed,
        data_root=config.data_root,
        download=config.download,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
    )


def read_pretraining_data(config: CompressConfig) -> Data | None:
    """The data to pretrain on, None where they are those of the run; raises as ``read_data``."""
    name = config.pretrain_dataset
    if name is None or name == config.dataset:
        return None
    return read_data(config.model_copy(update={"dataset": name}))
