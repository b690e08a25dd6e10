"""Every option of a compression run: name, default, bounds and help, in one place.

The command line (``pysoftq compress``) and the YAML file (``--config``) are made from this model.
Defaults are those of Table I of the paper; ``DATASET_DEFAULTS`` says where a data set departs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from pysoftq._arrays import check_granularity
from pysoftq.atomic import atomic_write

# 18,824 weights and 23 steps in an epoch: a stronger coupling, or the clusters would not collapse
# in time; a narrower one, for 4-bit HEQ's bit-width is met with more clusters than w = 0.5 leaves;
# n_min in proportion to layers of 72 to 9,216 weights. Chosen on the seeds 100 to 107.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "digits-resnet",
        "h": 0.2,
        "w": 0.35,
        "n_min": 1,
        "epochs": 150,
        "batch_size": 64,
        "pretrain_epochs": 40,
        "pretrain_batch_size": 128,
        "pretrain_weight_decay": 1e-3,
        "threads": 1,  # a network this small is three times slower on two
    },
    "pydoc": {
        "model": "gpt",
        "h": 0.003,  # its gradients are small, and AdamW weighs force against gradient alone
        "w": 0.25,
        "epochs": 8,
        "batch_size": 16,
        "lr": 1e-3,
        "optimizer": "adamw",
        "pretrain_epochs": 8,
        "pretrain_batch_size": 16,
        "pretrain_lr": 3e-3,
        "pretrain_optimizer": "adamw",
        "pretrain_weight_decay": 0.1,
        "threads": 1,
    },
}
SAME_DEFAULTS = {"text": "pydoc"}


# Where a recipe departs from the defaults, those of the data set included; measured in
# docs/recipe.md. All of it may be applied to a finished run.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"refine": "count", "bit_price": 0.01, "codebook_epochs": 0, "weights_lr": 0.0},
    "best": {"refine": "levels", "bit_price": 0.05, "codebook_epochs": 5, "weights_lr": 0.01},
}

MAX_MERGED_BITS = 11

# A set with a place after the colon is read from a folder or file.
DATASETS = (
    *("digits", "digits:A-B", "digits:shifted", "cifar10", "cifar100", "imagefolder:DIR"),
    *("pydoc", "text:FILE"),
)
_DATASET = r"digits(:shifted|:[0-9]-[0-9])?|cifar10|cifar100|imagefolder:.+|pydoc|text:.+"
TEXTS = ("pydoc", "text")  # for language models


class ConfigError(ValueError):
    """An option that is unknown or has a wrong value; the message names it."""


def _option(
    group: str,
    default: Any,
    text: str,
    *,
    on_resume: bool = False,
    metavar: str | None = None,
    **bounds: Any,
) -> Any:
    """A field with its help text; ``on_resume`` options may change when a run is resumed."""
    extra: dict[str, Any] = {"group": group, "on_resume": on_resume, "metavar": metavar}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


class CompressConfig(BaseModel):
    """Options of ``pysoftq compress``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # fmt: off
    dataset: str = _option("Data", "digits", f"{', '.join(DATASETS)}. A folder has train/ and "
        "test/, one sub-folder for each class; pydoc is Python's own help, a text for language "
        "models; digits:A-B are the digits from A to B, digits:shifted all of them, moved.",
        metavar="NAME")
    data_root: Path = _option("Data", Path("data"), "Folder for torchvision's data sets.",
        on_resume=True, metavar="DIR")
    download: bool = _option("Data", True, "Download torchvision's data sets where missing.",
        on_resume=True)
    image_size: int | None = _option("Data", None, "Resize the images of a folder to this square.",
        ge=8)
    mean: tuple[float, ...] | None = _option("Data", None, "Mean of the pixels in [0, 1], one "
        "value or one for each channel; ImageNet's for photographs.", metavar="R,G,B")
    std: tuple[float, ...] | None = _option("Data", None, "Standard deviation likewise.",
        metavar="R,G,B")
    split_seed: int | None = _option("Data", None, "Seed of the split of the digits into training "
        "and test images; that of the run by default.", ge=0, lt=2**31)
    augment: bool = _option("Data", True, "Random shifts, and mirror images for photographs.")
    context: int = _option("Data", 128, "Tokens that a language model sees at once.", ge=2)

    model: str = _option("Network", "resnet20", "resnet20/32/44/56/110, digits-resnet, "
        "digits-resnet-small or a classification model of torchvision; for text gpt, or hf:DIR, a "
        "causal language model in a Hugging Face folder.", metavar="NAME")
    weights: Path | None = _option("Network", None, "Pretrained weights (.pt, .pth, .th or "
        ".safetensors); without them the network is pretrained first.", metavar="FILE")

    h: float = _option("Soft quantization", 0.01, "Strength of the coupling, h_l = h N_l^-alpha.",
        ge=0)
    w: float = _option("Soft quantization", 0.5, "Width of the coupling in standard deviations of "
        "a layer's pretrained weights.", gt=0)
    alpha: float = _option("Soft quantization", 0.66, "Exponent of the strength.", ge=-10,
        le=10)
    bins: int = _option("Soft quantization", 2**14, "Bins of the histogram of a layer.", ge=1,
        le=2**24)
    method: Literal["scan", "fft"] = _option("Soft quantization", "scan", "Potential by prefix "
        "sums, exact in integers (scan), or by the paper's convolution (fft).")
    granularity: str = _option("Soft quantization", "layer", "What is coupled with itself alone "
        "and has a codebook: layer, channel (each slice of a weight along its first dimension) or "
        "group:N (each N weights of such a slice).", metavar="NAME")
    fraction_start: float = _option("Soft quantization", 0.3, "Share of the weights in the "
        "histogram in the first epoch.", gt=0, le=1)
    fraction_ramp: float = _option("Soft quantization", 0.5, "Share of the epochs over which the "
        "fraction rises to 1.", ge=0, le=1)
    include: tuple[str, ...] = _option("Soft quantization", (), "Couple only parameters whose name "
        "matches this pattern (repeatable).", metavar="PATTERN")
    exclude: tuple[str, ...] = _option("Soft quantization", (), "Never couple parameters whose "
        "name matches this pattern (repeatable).", metavar="PATTERN")
    override: dict[str, dict[str, float]] = _option("Soft quantization", {}, "Another strength or "
        "width for parameters whose name matches this pattern (repeatable; the first match "
        "decides).", metavar="PATTERN:h=H,w=W")

    cluster_bits: int = _option("Clusters", 7, "Clusters are found in 2^BITS equal bins.",
        on_resume=True, ge=1, le=16)
    n_min: int = _option("Clusters", 10, "Clusters of at most this many weights join the nearest "
        "larger one.", on_resume=True, ge=0)
    coding: Literal["entropy", "packed"] = _option("Clusters", "entropy", "Indices in the "
        "compressed file: as many bits as their entropy, or ceil(log2 K) bits each (packed).",
        on_resume=True)

    refine: Literal["count", "levels", "entropy"] = _option("Clusters", "count", "By n_min "
        "(count), or merge neighbours where that costs less squared error than the bits that it "
        "saves are worth, of plain indices (levels) or of an entropy coder (entropy).",
        on_resume=True)
    bit_price: float = _option("Clusters", 0.01, "Worth of a bit for one weight, in variances "
        "of its layer, where refine is levels or entropy; more in large layers.", on_resume=True,
        ge=0)
    codebook_epochs: int = _option("Clusters", 0, "Epochs in which the clusters' values, biases "
        "and normalisation are trained after refinement, each weight in its cluster.",
        on_resume=True, ge=0)
    codebook_lr: float = _option("Clusters", 0.001, "Highest learning rate of these (Adam, falling "
        "to 0).", on_resume=True, gt=0)
    weights_lr: float = _option("Clusters", 0.0, "Highest learning rate of the weights in these "
        "epochs (SGD, falling to 0), by which they move to other clusters; 0 keeps each in its "
        "own.", on_resume=True, ge=0)

    epochs: int = _option("Training", 30, "Epochs of soft quantization.", ge=1)
    batch_size: int = _option("Training", 128, "Images or windows of text in a batch.", ge=1)
    optimizer: Literal["sgd", "adamw"] = _option("Training", "sgd", "SGD with Nesterov momentum, "
        "or AdamW.")
    lr: float = _option("Training", 0.001, "Learning rate.", gt=0)
    lr_schedule: Literal["constant", "cosine"] = _option("Training", "constant", "Learning rate "
        "throughout (constant), or falling to 0 along a cosine.")
    momentum: float = _option("Training", 0.9, "Nesterov momentum, 0 for plain SGD; of AdamW, the "
        "decay of the mean gradient.", ge=0, lt=1)
    weight_decay: float = _option("Training", 0.0, "Weight decay.", ge=0)

    pretrain_dataset: str | None = _option("Pretraining", None, "Data to pretrain on, as dataset, "
        "where no weights are given; the same by default.", metavar="NAME")
    pretrain_epochs: int = _option("Pretraining", 60, "Epochs, where no weights are given.", ge=1)
    pretrain_batch_size: int = _option("Pretraining", 64, "Images or windows of text in a batch.",
        ge=1)
    pretrain_optimizer: Literal["sgd", "adamw"] = _option("Pretraining", "sgd", "As optimizer, "
        "with momentum 0.9.")
    pretrain_lr: float = _option("Pretraining", 0.1, "Highest learning rate of one cycle.", gt=0)
    pretrain_weight_decay: float = _option("Pretraining", 5e-4, "Weight decay.", ge=0)

    amp: Literal["off", "bf16"] = _option("Speed", "off", "Both trainings in float32, or in "
        "bfloat16 where that is safe (bf16).")
    channels_last: Literal["auto", "on", "off"] = _option("Speed", "auto", "Channels of a weight "
        "side by side in memory; auto: on a GPU.", on_resume=True)
    compile: bool = _option("Speed", False, "Compile the network by torch.compile: minutes at the "
        "start, faster steps after.", on_resume=True)
    graph: Literal["auto", "on", "off"] = _option("Speed", "auto", "A training step as one CUDA "
        "graph; auto: on a GPU.", on_resume=True)

    recipe: Literal["paper", "best"] = _option("Run", "paper", "The paper's refinement, or the "
        "one found best (docs/recipe.md): refine levels and trained codebooks.", on_resume=True)
    seed: int = _option("Run", 0, "Seed of every random number.", ge=0, lt=2**31)
    threads: int | None = _option("Run", None, "Threads on the CPU; all cores by default.",
        on_resume=True, ge=1, le=1024)
    device: str = _option("Run", "auto", "Where the network runs: auto, cpu, cuda, cuda:N or mps; "
        "auto takes CUDA where it is present.", on_resume=True, metavar="NAME")
    checkpoint_minutes: float = _option("Run", 10.0, "A checkpoint is written after each epoch and "
        "after this time within one.", on_resume=True, gt=0)
    # fmt: on

    @field_validator("dataset", "pretrain_dataset")
    @classmethod
    def _known_dataset(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(_DATASET, name, re.DOTALL):
            raise ValueError(f"wanted one of {', '.join(DATASETS)}")
        return name

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, text: str, info: ValidationInfo) -> str:
        if check_granularity(text) != "layer" and info.data.get("method") == "fft":
            raise ValueError("channels and groups want method scan; fft is for whole layers")
        return text

    @field_validator("refine")
    @classmethod
    def _few_bins(cls, rule: str, info: ValidationInfo) -> str:
        if rule != "count" and info.data.get("cluster_bits", 0) > MAX_MERGED_BITS:
            raise ValueError(f"clusters are merged in 2^{MAX_MERGED_BITS} bins at most")
        return rule

    @field_validator("device")
    @classmethod
    def _known_device(cls, name: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name):
            raise ValueError("wanted auto, cpu, cuda, cuda:N or mps")
        return name

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_pattern(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("override", mode="before")
    @classmethod
    def _parsed_override(cls, value: Any) -> Any:
        # The command line gives 'PATTERN:h=0.1,w=0.5', several times.
        if not isinstance(value, (list, tuple)):
            return value
        parsed = dict(map(_parse_override, value))
        if len(parsed) < len(value):
            raise ValueError("wanted each pattern once")
        return parsed

    @field_validator("override")
    @classmethod
    def _known_override(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for pattern, values in value.items():
            if not values or set(values) - {"h", "w"}:
                raise ValueError(f"wanted h, w or both for {pattern!r}")
            if values.get("h", 0) < 0 or values.get("w", 1) <= 0:
                raise ValueError(f"wanted h of 0 or more and w above 0 for {pattern!r}")
        return value

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

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value, default=0) <= 0:
            raise ValueError("wanted values above 0")
        return value


def _parse_override(text: str) -> tuple[str, dict[str, str]]:
    """'fc.*:h=0.1,w=0.5' in two: the pattern, and the values as text."""
    pattern, colon, values = text.rpartition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not (pattern and colon and all(equals for _, equals, _ in pairs)):
        raise ValueError(f"wanted PATTERN:h=H,w=W, not {text!r}")
    return pattern, {name.strip(): number for name, _, number in pairs}


def override_texts(override: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Overrides as the command line gives them, in an order that no sorting of keys can change."""
    return [
        f"{pattern}:{','.join(f'{name}={number!r}' for name, number in values.items())}"
        for pattern, values in override.items()
    ]


def make_config(*layers: Mapping[str, Any]) -> CompressConfig:
    """Options from several sources, a later one winning; the data set's defaults come first.

    A source that names a recipe brings in what belongs to it, its own other options winning.

    Raises ConfigError naming each option that is unknown or has a wrong value.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given |= {**recipe_options(layer), **layer}
    return _validated({**dataset_defaults(given), **given})


def dataset_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Where the defaults of the chosen data set depart from those of the paper."""
    dataset = given.get("dataset", CompressConfig.model_fields["dataset"].default)
    if not isinstance(dataset, str):
        return {}
    kind = dataset.partition(":")[0]
    return dict(DATASET_DEFAULTS.get(SAME_DEFAULTS.get(kind, kind), {}))


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


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A YAML file of 'option: value' lines, of whatever names.

    Raises OSError for a missing file, ConfigError where it is no mapping, or a key comes twice.
    """
    with Path(path).open(encoding="utf-8") as file:
        try:
            content = yaml.load(file, _Loader)  # noqa: S506 - it is a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        except ValueError as error:  # other bytes than UTF-8, a date that is none
            raise ConfigError(f"{path} is no YAML: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{path} is nested too deeply") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: wanted 'option: value' lines, found {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself takes the last of several equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; refuses a key that comes twice."""
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        seen = set()
        for key in keys:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def write_config(config: CompressConfig, path: Path) -> None:
    """Write all options as YAML, atomically."""
    with atomic_write(path) as temporary:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        Path(temporary).write_text(text, encoding="utf-8")


def command_line(config: CompressConfig) -> str:
    """The ``pysoftq compress`` command of these options, those left out that are the defaults.

    An option that is None where the default is not cannot be written as a flag, and is left out.
    """
    values = config.model_dump(mode="json")
    chosen = {"dataset": config.dataset, "recipe": config.recipe}
    defaults = make_config(chosen).model_dump(mode="json")
    words = ["pysoftq", "compress"]
    if config.dataset != CompressConfig.model_fields["dataset"].default:
        words += ["--dataset", config.dataset]
    if config.recipe != CompressConfig.model_fields["recipe"].default:
        words += ["--recipe", config.recipe]
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


def _validated(values: Mapping[str, Any]) -> CompressConfig:
    try:
        return CompressConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown option {key!r}"
    message = problem["msg"].removeprefix("Value error, ")  # of our own validators
    return f"option {key!r}: {message}, given {problem['input']!r}"


def changed_options(saved: Mapping[str, Any], config: CompressConfig) -> list[str]:
    """Names of the options that shape the training and differ from those saved with a run."""
    now = config.model_dump(mode="json")
    return [
        name
        for name, field in CompressConfig.model_fields.items()
        if name in saved and saved[name] != now[name] and not may_change_on_resume(field)
    ]


def option_info(field: FieldInfo) -> dict[str, Any]:
    """Group, metavar and resume rule of a field."""
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def may_change_on_resume(field: FieldInfo) -> bool:
    """Whether a resumed run may set this option anew."""
    return bool(option_info(field)["on_resume"])
