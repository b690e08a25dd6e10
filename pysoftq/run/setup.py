"""What a run works with: options, folder, device, data, network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.report import without_clusters
from pysoftq.compressor.rungs import COUPLED
from pysoftq.compressor.target import Target
from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.selection import match_override, select
from pysoftq.data.datasets import load_dataset
from pysoftq.data.names import TEXTS
from pysoftq.data.tasks import LANGUAGE_MODELLING, Data, Half
from pysoftq.data.text import read_text
from pysoftq.errors import ConfigError
from pysoftq.interaction.threads import set_num_threads
from pysoftq.models.build import build_model
from pysoftq.models.huggingface import FolderTokenizer, is_folder_model
from pysoftq.models.recompute import recompute_activations
from pysoftq.models.weight_files import stored_once
from pysoftq.run.batch_norm import normalise_together
from pysoftq.run.batches import check_batches, has_batch_norm
from pysoftq.run.config import CompressConfig
from pysoftq.run.evaluation import evaluate
from pysoftq.run.folder import RunFolder
from pysoftq.run.front_sizes import check_compresses, check_sizes, front_sizes
from pysoftq.run.memory import state_memory
from pysoftq.run.observer import Observer, Silent
from pysoftq.run.optimizers import trained_lr
from pysoftq.run.precision import precision_remarks
from pysoftq.run.pretrain_cache import cache_folder
from pysoftq.run.processes import ALONE, Processes
from pysoftq.run.sharding import shard


@dataclass
class Run:
    """One run and all that its stages work with.

    Attributes:
        config: its options.
        folder: where its files are; locked.
        device: where the network and the data are.
        observer: receives its progress.
        data: training and test data; the training data without the validation data.
        model: the network, untrained at first.
        processes: those that do the run together.
        validation: training data that are held out, for a largest drop or a front; None without.
        compressor: what leads to a target, from `couple` on; None without.
        quantizer: the coupling of its weights, from `couple` on.
    """

    config: CompressConfig
    folder: RunFolder
    device: torch.device
    observer: Observer
    data: Data
    model: nn.Module
    processes: Processes = ALONE
    validation: Half | None = None
    compressor: Compressor | None = None
    quantizer: SoftQuantizer = field(init=False, repr=False)

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        folder: RunFolder,
        observer: Observer,
        data: Data | None = None,
        processes: Processes = ALONE,
    ) -> Run:
        """Read the data, unless given, and build the network.

        Of several processes the first one reports to ``observer``.

        Raises ConfigError as `choose_device` and `check_batches` do, and whatever is wrong with
        data or network.
        """
        device = choose_device(config, processes)
        if not processes.leads:
            observer = Silent()
        if data is None:
            observer.message(f"loading {config.dataset}")
        given = data

        def build() -> tuple[Data, Half | None, nn.Module]:
            data, held = held_out((read_data(config) if given is None else given), config)
            data, held = data.to(device), None if held is None else held.to(device)
            return data, held, make_model(config, data, device, processes)

        data, validation, model = processes.together(build)
        if validation is not None:
            observer.message(_validation_line(config, data, validation))
        for remark in (*data.remarks(), *precision_remarks(config, device)):
            observer.message(remark)
        check_batches(model, data, config.batch_size, "batch_size", config.accumulate)
        if config.accumulate > 1 and has_batch_norm(model):
            observer.message(
                f"`accumulate` is {config.accumulate}: batch normalisation uses the statistics of "
                f"each part of a batch, results are not those of the whole batch"
            )
        if (count := len(data.train)) < config.batch_size:
            observer.message(
                f"a batch holds all {count} training examples: `batch_size` is {config.batch_size}"
            )
        state_memory(model, data, config, processes, observer)
        return cls(config, folder, device, observer, data, model, processes, validation)

    @property
    def watched(self) -> tuple[str, Half]:
        """What is measured on after each epoch: test data, validation data where there are any."""
        if self.validation is None:
            return "test", self.data.test
        return "validation", self.validation

    def tested(self, name: str) -> tuple[float, float]:
        """Loss and accuracy of the network as it is now, of this name, on the test data."""
        self.observer.on_network(name)
        return evaluate(self.model, self.data, self.data.test)

    @property
    def sharded(self) -> bool:
        """Whether each process holds pieces of the weights, from `couple` on."""
        return self.config.shard and self.processes.several

    def couple(self) -> None:
        """Measure the layers of the network, which holds its pretrained weights."""
        if self.sharded:
            shard(self.model, self.processes)
        config = self.config
        if config.target_option is None:
            self.quantizer = prepare(self.model, config)
            return
        targets = [config.target] if config.target else self.front_targets()
        self.compressor = self._compressor(targets)
        if config.front is not None:
            sizes = ", ".join(f"{target.bytes:,}" for target in targets)
            self.observer.message(f"front: networks of at most {sizes} bytes")
        self.quantizer = self.compressor.softq

    def check(self) -> None:
        """Refuse what the network shows to be wrong in the options, before it is pretrained.

        Raises ConfigError for a size that no compressed file can have, ValueError for a pattern
        that matches no layer.
        """
        config = self.config
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `couple` shows them
            layers, _ = select(self.model, config.include or None, config.exclude or None)
        match_override(config.override, layers)
        if self.config.target_size is not None:
            check_compresses("target_size", self.config.target_size, bytes_float32(self.model))
        if self.config.front is not None:
            self.front_targets()

    def front_targets(self) -> list[Target]:
        """The rungs of a front, whose sizes depend on the network.

        Raises ConfigError where no file of the network can have one of these sizes.
        """
        front = self.config.front
        assert front is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `couple` shows them
            found = self._compressor(Target(rd_weight=0.0))
        least = found.smallest_bytes
        sizes = front_sizes(front, least, found.softq.size)
        why = f"{smallest_file(found)}{without_clusters(found.file_size.others)}"
        check_sizes(sizes, bytes_float32(self.model), least, why)
        return [Target(bytes=size) for size in sizes]

    def _compressor(self, target: Target | Sequence[Target]) -> Compressor:
        config = self.config
        return Compressor(
            self.model,
            target,
            config.coupling,
            coupled=min(config.epochs / config.epochs_in_all, COUPLED),
            values_lr=config.values_lr,
            weights_lr=trained_lr(config),
            coding=config.coding,
            metadata=self.data.metadata(),
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the data."""
        return self.data.fingerprint()


def smallest_file(compressor: Compressor) -> str:
    """How small the file of a network can be at best."""
    return f"the smallest file of this network takes {compressor.smallest_bytes:,} bytes"


def bytes_float32(model: nn.Module) -> int:
    """What the tensors of a network take with every floating value in four bytes."""
    return sum(
        value.numel() * (4 if value.is_floating_point() else value.element_size())
        for value in stored_once(model).values()
    )


def make_model(
    config: CompressConfig, data: Data, device: torch.device, processes: Processes = ALONE
) -> nn.Module:
    """The untrained network for ``data``, on the device."""
    if config.dtype != "float32" and data.task is not LANGUAGE_MODELLING:
        raise ConfigError(
            f"option 'dtype' is {config.dtype}, which is for language models; `amp` bf16 trains "
            "networks for images in bfloat16 where that is safe"
        )
    model = build_model(config.model, **data.model_shape)
    if config.dtype == "bfloat16":
        model.to(torch.bfloat16)
    if config.gradient_checkpointing:
        recompute_activations(model, config.model)
    layout = memory_format(config, device)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    if processes.several:
        normalise_together(model)
    return model


def check_processes(config: CompressConfig, processes: Processes) -> None:
    """Raise ConfigError for options that several processes cannot follow."""
    if not processes.several:
        return
    refusals = (
        ("device", config.device == "mps" or ":" in config.device, "choose auto, cpu or cuda"),
        ("graph", config.graph == "on", "CUDA graphs are for one process; leave it at auto"),
        ("compile", config.compile, "compiled networks are for one process"),
        ("channels_last", config.shard and config.channels_last == "on", "not with `shard`"),
    )
    for name, refused, reason in refusals:
        if refused:
            value = getattr(config, name)
            raise ConfigError(
                f"option {name!r} is {value} for {processes.size} processes: {reason}"
            )


def choose_device(config: CompressConfig, processes: Processes = ALONE) -> torch.device:
    """The device asked for; ``auto`` takes CUDA where it is present, else the CPU.

    Of several processes each takes the GPU of its number on its machine. MPS is used only when
    asked for: it lacks float64, which some operations of PyTorch require.

    Raises ConfigError where the device asked for is missing, or cannot do what is asked of it.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if gpus else "cpu") if config.device == "auto" else config.device)
    if device.type == "cuda" and processes.several:
        device = torch.device("cuda", processes.local_rank)
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
    automatic = device.type == "cuda" and not config.shard  # pieces are contiguous
    on = automatic if config.channels_last == "auto" else config.channels_last == "on"
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
        return read_text(config.dataset, config.context, tokenizer, cache_folder() / "tokens")
    return load_dataset(
        config.dataset,
        seed=split_seed(config),
        data_root=config.data_root,
        download=config.download,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
    )


def held_out(data: Data, config: CompressConfig) -> tuple[Data, Half | None]:
    """The data without those that are held out for a target, and these; None if none are.

    Raises ConfigError where too little would be left on either side.
    """
    if not config.validates:
        return data, None
    try:
        return data.hold_out(config.validation, split_seed(config))
    except ValueError as error:
        raise ConfigError(f"option 'validation': {error}") from error


def split_seed(config: CompressConfig) -> int:
    """The seed of splits of the data."""
    return config.seed if config.split_seed is None else config.split_seed


def _validation_line(config: CompressConfig, data: Data, held: Half) -> str:
    count = f"{len(held):,} of {len(held) + len(data.train):,}"
    text = f"validation: {count} training examples are held out"
    if config.weights is not None or is_folder_model(config.model):
        text += "; the given network may have been trained on them, and lose less there than on "
        text += "new data"
    return text


def read_pretraining_data(config: CompressConfig) -> Data | None:
    """The data to pretrain on, None where they are those of the run; raises as ``read_data``."""
    name = config.pretrain_dataset
    if name is None or name == config.dataset:
        return None
    return read_data(config.model_copy(update={"dataset": name}))
