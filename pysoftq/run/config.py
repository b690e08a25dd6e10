"""Options of a compression run, and how they are read from files and the command line.

The defaults of the coupling are those of Table I of the paper, those of the clusters are the recipe
`best`; `presets` lists where data sets and recipes depart.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator
from typing_extensions import Self

from pysoftq.compressor.target import Target
from pysoftq.coupling.options import ClusteringConfig, override_texts
from pysoftq.data.names import DATASET_PATTERN, DATASETS
from pysoftq.errors import ConfigError
from pysoftq.options import (
    Size,
    changed_default,
    may_change_on_resume,
    option,
    option_info,
    read_mapping,
)
from pysoftq.run.front_sizes import FrontSizes, front_epochs
from pysoftq.run.presets import (
    DATASET_DEFAULTS,
    DEFAULT_TARGET,
    LOG_H,
    RECIPES,
    SAME_DEFAULTS,
)

TARGETS = ("target_size", "target_bits", "max_drop", "front")


class CompressConfig(ClusteringConfig):
    """Options of ``pysoftq compress``: those of the coupling, and those of the whole run."""

    # fmt: off
    dataset: str = option("Data", "digits", f"{', '.join(DATASETS)}. A folder has train/ and "
        "test/ or val/, one sub-folder for each class; pydoc is Python's own help, a text for "
        "language models; digits:A-B are the digits from A to B, digits:shifted all, moved.",
        metavar="NAME")
    data_root: Path = option("Data", Path("data"), "Folder for torchvision's data sets.",
        on_resume=True, metavar="DIR")
    download: bool = option("Data", True, "Download torchvision's data sets where missing.",
        on_resume=True)
    image_size: int | None = option("Data", None, "Resize the images of a folder to a "
        "square of this many pixels.", ge=8)
    mean: tuple[float, ...] | None = option("Data", None, "Mean of the pixels in [0, 1], one "
        "value or one per channel.  [photographs: that of ImageNet]", metavar="R,G,B")
    std: tuple[float, ...] | None = option("Data", None, "Standard deviation of the pixels, in "
        "the form of --mean.", metavar="R,G,B")
    split_seed: int | None = option("Data", None, "Seed of the split of the digits into training "
        "and test images.  [default: --seed]", ge=0, lt=2**31)
    augment: bool = option("Data", True, "Random shifts, and mirror images for photographs.")
    context: int = option("Data", 128, "Context length of a language model, in tokens.", ge=2)

    model: str = option("Network", "resnet20", "resnet20/32/44/56/110, digits-resnet, "
        "digits-resnet-small or a classification model of torchvision; for text gpt, or hf:DIR, a "
        "causal language model in a Hugging Face folder.", metavar="NAME")
    weights: Path | None = option("Network", None, "Pretrained weights (.safetensors, .pt, "
        ".pth, .ckpt, .bin …); without them the network is pretrained first.", metavar="FILE")

    dtype: Literal["float32", "bfloat16"] = option("Network", "float32", "Weights of a language "
        "model, also in its files: float32, or bfloat16, which takes half of the memory and rounds "
        "small steps away.")

    target_size: Size | None = option("Target", None, "Largest size of the whole compressed file: "
        "weights, codebooks, description and all other tensors. In bytes, or as 60kB, 1.5MB, "
        "60KiB.", gt=0, metavar="SIZE")
    target_bits: float | None = option("Target", None, "Most bits of a coupled weight in the "
        "mean: entropy, or those of packed indices (--coding).", gt=0)
    max_drop: float | None = option("Target", None, "Largest loss on training data that are held "
        "out, in percentage points of accuracy or percent of perplexity. Without a size or bits, "
        "the smallest file within it is searched for.", ge=0)
    front: FrontSizes | None = option("Target", None, "Compressed networks of several sizes from "
        "one training: their number, or their sizes such as 60kB,40kB,20kB. pysoftq pick chooses "
        "one of them.", metavar="N|SIZE,SIZE,…")
    validation: float | None = option("Target", None, "Share of the training data held out for "
        "--max-drop and --front, the same of each class.  [default: 0.1; of fewer than 5,000 "
        "images up to 0.25]", gt=0, lt=1)

    # Higher than without training afterwards, which regains most of what merging costs.
    rd_weight: float = changed_default(ClusteringConfig, "rd_weight", 0.05)
    coding: Literal["entropy", "packed"] = option("Clusters", "entropy", "Indices in the "
        "compressed file: as many bits as their entropy, or ceil(log2 K) bits each (packed).",
        on_resume=True)

    codebook_epochs: int = option("Clusters", 5, "Epochs of training once clusters have merged: of "
        "their values, of the weights, which may change clusters, and of all other parameters. "
        "With a target, there is one training of --epochs plus these epochs, and at most three "
        "quarters of it are coupled (60 % with --max-drop alone).",
        on_resume=True, ge=0)
    values_lr: float = option("Clusters", 0.01, "Peak learning rate of the values in these epochs "
        "(Adam, falling to 0), in standard deviations of a layer.", on_resume=True, gt=0)
    weights_lr: float = option("Clusters", 0.01, "Peak learning rate of weights and other "
        "parameters in these epochs (SGD, falling to 0; AdamW has --lr).", on_resume=True, gt=0)

    epochs: int = option("Training", 30, "Epochs of soft quantization.", ge=1)
    batch_size: int = option("Training", 128, "Images or windows of text in a batch.", ge=1)
    accumulate: int = option("Training", 1, "Parts of a batch that go through the network one "
        "after the other, which takes less memory.", on_resume=True, ge=1)
    optimizer: Literal["sgd", "adamw", "adamw8bit"] = option("Training", "sgd", "SGD with Nesterov "
        "momentum, AdamW, or AdamW with a state of 8 bits (torchao).")
    lr: float = option("Training", 0.001, "Learning rate.", gt=0)
    lr_schedule: Literal["constant", "cosine"] = option("Training", "constant", "Learning rate "
        "throughout (constant), or falling to 0 along a cosine.")
    momentum: float = option("Training", 0.9, "Nesterov momentum, 0 for plain SGD; of AdamW, the "
        "decay of the mean gradient.", ge=0, lt=1)
    weight_decay: float = option("Training", 0.0, "Weight decay.", ge=0)

    pretrain_dataset: str | None = option("Pretraining", None, "Data set of the pretraining, "
        "in the form of --dataset.  [default: --dataset]", metavar="NAME")
    pretrain_epochs: int = option("Pretraining", 60, "Epochs, if no weights are given.", ge=1)
    pretrain_batch_size: int = option("Pretraining", 64, "Images or windows of text in a batch.",
        ge=1)
    pretrain_optimizer: Literal["sgd", "adamw"] = option("Pretraining", "sgd", "SGD with "
        "momentum 0.9, or AdamW.")
    pretrain_lr: float = option("Pretraining", 0.1, "Peak learning rate of the "
        "one-cycle schedule.", gt=0)
    pretrain_weight_decay: float = option("Pretraining", 5e-4, "Weight decay.", ge=0)

    amp: Literal["off", "bf16"] = option("Speed", "off", "Both trainings in float32, or in "
        "bfloat16 where that is safe and the device has it (bf16).")
    gradient_checkpointing: bool = option("Speed", False, "Compute activations of a language model "
        "again in the backward pass: less memory, about a third more time.", on_resume=True)
    channels_last: Literal["auto", "on", "off"] = option("Speed", "auto", "Channels-last layout "
        "of the weights; auto: on a GPU.", on_resume=True)
    compile: bool = option("Speed", False, "Compile the network by torch.compile: minutes at the "
        "start, faster steps after.", on_resume=True)
    graph: Literal["auto", "on", "off"] = option("Speed", "auto", "Run a training step as one CUDA "
        "graph; auto: on a GPU.", on_resume=True)

    recipe: Literal["best", "paper"] = option("Run", "best", "Refinement levels with trained "
        "codebooks and weights (best, see docs/recipe.md), or the paper's refinement (paper).",
        on_resume=True)
    threads: int | None = option("Run", None, "Threads on the CPU; all cores by default.",
        on_resume=True, ge=1, le=1024)
    device: str = option("Run", "auto", "Device: auto, cpu, cuda, cuda:N or mps; auto is CUDA if "
        "present, else the CPU.", on_resume=True, metavar="NAME")
    shard: bool = option("Run", False, "Divide weights, gradients and state of the optimizer "
        "between the processes of torchrun (FSDP2); without it each holds all of them.",
        on_resume=True)
    strict: bool = option("Run", False, "Exit with code 3 if the finished run has warnings.",
        on_resume=True)
    checkpoint_minutes: float = option("Run", 10.0, "Largest time between checkpoints within an "
        "epoch, in minutes; one is also written after each epoch.", on_resume=True, gt=0)
    # fmt: on

    @field_validator("dataset", "pretrain_dataset")
    @classmethod
    def _known_dataset(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(DATASET_PATTERN, name, re.DOTALL):
            raise ValueError(f"expected one of {', '.join(DATASETS)}")
        return name

    @field_validator("device")
    @classmethod
    def _known_device(cls, name: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name):
            raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
        return name

    @field_validator("amp", "channels_last", "graph", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        # YAML reads on and off as truth values.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _channels(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(value.split(","))
        return (value,) if isinstance(value, (int, float)) else value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        name = self.target_option
        if name is None:
            return self
        if None not in (self.target_size, self.target_bits):
            raise ValueError("options 'target_size' and 'target_bits': choose one of them")
        if self.front is not None and name != "front":
            raise ValueError(f"options 'front' and {name!r}: choose one of them")
        required = {
            "recipe": (self.recipe == "best", "best"),
            "refinement": (self.refinement != "count", "levels, packed or entropy"),
            "codebook_epochs": (self.codebook_epochs > 0, "at least 1"),
        }
        for other, (held, values) in required.items():
            if not held:
                raise ValueError(
                    f"option {other!r} must be {values} with {name!r}, got {getattr(self, other)}"
                )
        return self

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value, default=0) <= 0:
            raise ValueError("expected values above 0")
        return value

    @property
    def target_option(self) -> str | None:
        """The name of the first target that is given."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def target(self) -> Target | None:
        """Where the run is to end; None of a front, or if the size follows from `rd_weight`."""
        if self.target_option is None or self.front is not None:
            return None
        return Target(bytes=self.target_size, bits=self.target_bits, max_drop=self.max_drop)

    @property
    def trains_clusters(self) -> bool:
        """Whether merged clusters are trained, to a target or at the rate-distortion weight."""
        merged = self.recipe == "best" and self.refinement != "count"
        return merged and self.codebook_epochs > 0

    @property
    def validates(self) -> bool:
        """Whether training data are held out, by which networks are chosen."""
        return self.max_drop is not None or self.front is not None

    @property
    def chooses_h(self) -> bool:
        """Whether h is chosen from the gradients: there is a target, and h is not set."""
        return self.target_option is not None and super().chooses_h

    @property
    def epochs_in_all(self) -> int:
        """Epochs of the coupled training, and with a target those after it, which belong to it."""
        return self.epochs + (self.codebook_epochs if self.target_option else 0)

    @property
    def coupling(self) -> ClusteringConfig:
        """The options of coupling and clusters only; without an h that is chosen."""
        chosen = {"h"} if self.chooses_h else set()
        names = ClusteringConfig.model_fields.keys() - chosen
        return ClusteringConfig(**{name: getattr(self, name) for name in names})


def make_config(*layers: Mapping[str, Any]) -> CompressConfig:
    """Options from several sources, a later one winning; the data set's defaults come first.

    A source that names a recipe or a front brings in what belongs to it, its own other options
    winning.

    Raises ConfigError naming each option that is unknown or has a wrong value.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given |= {**recipe_options(layer), **front_epochs(layer), **layer}
    return CompressConfig.from_dict({**dataset_defaults(given), **given})


def new_config(*layers: Mapping[str, Any]) -> CompressConfig:
    """The options of a run to be begun, as ``make_config``.

    Where nothing says how it is to end (a target, a rate-distortion weight, no training after
    refinement, another recipe or refinement), it gets `DEFAULT_TARGET`.
    """
    given = {name for layer in layers for name, value in layer.items() if value is not None}
    config = make_config(*layers)
    open_ended = config.trains_clusters and not given & {*TARGETS, "rd_weight"}
    return make_config(*layers, DEFAULT_TARGET) if open_ended else config


def dataset_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Where the defaults of the chosen data set depart from those of the paper."""
    dataset = given.get("dataset", CompressConfig.model_fields["dataset"].default)
    if not isinstance(dataset, str):
        return {}
    kind = dataset.partition(":")[0]
    kind = SAME_DEFAULTS.get(kind, kind)
    found = dict(DATASET_DEFAULTS.get(kind, {}))
    target = any(given.get(name) is not None for name in TARGETS)
    log = given.get("potential") == "log"
    if log or target:  # those of the data sets are of the linear potential; a target chooses it
        found.pop("h", None)
    if log and not target and kind in LOG_H:
        found["h"] = LOG_H[kind]
    return found


def recipe_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe named in these options stands for; empty where none is."""
    name = given.get("recipe")
    return dict(RECIPES.get(name, {})) if isinstance(name, str) else {}


def read_config(path: str | Path) -> dict[str, Any]:
    """The options set in a YAML file, each key checked; values are checked by ``make_config``.

    Raises OSError for a missing file, ConfigError where it is no mapping of known options, each
    given once.
    """
    content = read_mapping(path)
    try:
        make_config(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return content


def command_line(config: CompressConfig) -> str:
    """The ``pysoftq compress`` command of these options, those left out that are the defaults.

    An option that is None where the default is not cannot be written as a flag, and is left out.
    """
    values = config.model_dump(mode="json")
    ends = {name: values[name] for name in TARGETS if values[name] is not None}
    if not ends and config.trains_clusters:
        ends = {"rd_weight": config.rd_weight}
    chosen = {name: values[name] for name in ("dataset", "recipe", "potential")}
    usual = make_config({**chosen, **ends})
    defaults = usual.model_dump(mode="json")
    if usual.chooses_h and not config.chooses_h:
        defaults["h"] = None
    if ends != DEFAULT_TARGET:
        defaults |= dict.fromkeys(ends)
    words = ["pysoftq", "compress"]
    for name, value in chosen.items():
        if value != CompressConfig.model_fields[name].default:
            words += [f"--{name}", value]
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value == defaults[name] or value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            words += [word for text in override_texts(value) for word in (f"--{flag}", text)]
        elif isinstance(value, list) and all(isinstance(part, str) for part in value):
            words += [word for part in value for word in (f"--{flag}", part)]
        elif isinstance(value, list):
            words += [f"--{flag}", ",".join(map(str, value))]
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def changed_options(saved: Mapping[str, Any], config: CompressConfig) -> list[str]:
    """Names of the options that shape the training and differ from those saved with a run."""
    now = config.model_dump(mode="json")
    fixed = ("Clusters", "Target") if config.target_option else ()  # groups that shape it too then
    return [
        name
        for name, field in CompressConfig.model_fields.items()
        if name in saved
        and saved[name] != now[name]
        and (option_info(field)["group"] in fixed or not may_change_on_resume(field))
    ]
