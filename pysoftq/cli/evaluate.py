"""``pysoftq evaluate``: accuracy or perplexity of a compressed file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli.networks import build, model_option
from pysoftq.cli.options import config_options, given_options
from pysoftq.cli.paths import CompressedFile
from pysoftq.errors import ConfigError
from pysoftq.options import option_info
from pysoftq.run.config import CompressConfig, make_config, read_config
from pysoftq.run.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from pysoftq.artifact import ArtifactInfo
    from pysoftq.data.tasks import Data

EXAMPLES = """\b
Examples:
  pysoftq evaluate runs/1/compressed.safetensors
  pysoftq evaluate net.safetensors --dataset imagefolder:photos --image-size 32
"""

_USED = ("device", "threads")
_NOT_USED = [
    name
    for name, field in CompressConfig.model_fields.items()
    if name not in _USED and (option_info(field)["group"] != "Data" or name == "augment")
]
_OF_RUN = "[default: that of the run]"
_DEFAULTS = {"dataset": _OF_RUN, "split_seed": _OF_RUN, "context": "[default: that of FILE]"}


@click.command("evaluate", epilog=EXAMPLES)
@click.argument("file", type=CompressedFile())
@config_options(*_NOT_USED, defaults=_DEFAULTS)
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def evaluate(file: Path, model: str | None, as_json: bool, **values: Any) -> None:
    """Measure the network in the compressed FILE on test data: accuracy, or perplexity of a text.

    The data are those that the network was trained on, if FILE is in the folder of its run, or is
    that folder; otherwise --dataset is required.
    """
    folder, given = RunFolder.of(file), given_options(values)
    if not folder.exists and "dataset" not in given:
        raise click.UsageError(f"missing option --dataset: {file} is not in the folder of a run")
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.artifact import inspect_compressed, load_compressed
    from pysoftq.run import evaluation
    from pysoftq.run.setup import choose_device, read_data, set_threads

    info = inspect_compressed(file)
    saved = read_config(folder.config) if folder.exists else {}
    chosen = {name: value for name, value in saved.items() if value is not None}
    config = make_config(_described(info), chosen, given)
    set_threads(config.threads)
    device = choose_device(config)
    data = read_data(config).to(device)
    _check_inputs(file, info.metadata, config.dataset, data)
    network = load_compressed(file) if model is None else load_compressed(file, build(model))
    _check_outputs(file, network.to(device), config.dataset, data)
    loss, accuracy = evaluation.evaluate(network, data, data.test)
    merit = data.task.merit_of(loss, accuracy)
    result = {
        "file": str(file),
        "dataset": config.dataset,
        "examples": len(data.test),
        data.task.merit: merit,
        "loss": loss,
        "bits": info.mean_bits,
        "entropy_bits": info.entropy_bits,
        "bytes_on_disk": info.bytes_on_disk,
    }
    click.echo(
        json.dumps(result)
        if as_json
        else f"test {data.task.merit} {data.task.shown(merit)}, loss {loss:.4f} on "
        f"{config.dataset} ({len(data.test):,} examples); {info.mean_bits:.3f} bits per weight, "
        f"{info.entropy_bits:.3f} entropy bits, {info.bytes_on_disk:,} bytes"
    )


def _described(info: ArtifactInfo) -> dict[str, Any]:
    """Options that follow from the file: what inputs the network was trained on."""
    described: dict[str, Any] = {
        name: info.metadata[name] for name in ("mean", "std") if name in info.metadata
    }
    inputs = info.metadata.get("input", {})
    if inputs.get("dtype") == "int64":
        described["context"] = inputs["shape"][-1]
    if info.model is not None:
        described["model"] = info.model["name"]
    return described


def _check_inputs(file: Path, described: dict[str, Any], dataset: str, data: Data) -> None:
    """Refuse data of another kind, with other channels, or of other tokens.

    Images may have another size, which many networks accept.
    """
    found = data.metadata()
    inputs, theirs = described.get("input", found["input"]), found["input"]
    if inputs["dtype"] != theirs["dtype"] or inputs["shape"][:-2] != theirs["shape"][:-2]:
        raise ConfigError(
            f"{file}: the network takes inputs of {inputs['dtype']} {inputs['shape']}, "
            f"{dataset} has {theirs['dtype']} {theirs['shape']}"
        )
    if described.get("tokenizer", found.get("tokenizer")) != found.get("tokenizer"):
        raise ConfigError(
            f"{file}: the network was trained with the tokenizer {described['tokenizer']}, "
            f"{dataset} is read with {found.get('tokenizer')}"
        )


def _check_outputs(file: Path, network: nn.Module, dataset: str, data: Data) -> None:
    """Refuse data with more classes, or tokens, than the network predicts."""
    from pysoftq.data.predictions import logits_of

    inputs, _ = next(iter(data.ordered(data.test)))
    predicted = logits_of(network.eval()(inputs[:1])).shape[-1]
    shape = data.model_shape
    if predicted < (needed := shape.get("num_classes", shape.get("vocab_size", 0))):
        raise ConfigError(
            f"{file}: the network predicts {predicted} classes, {dataset} has {needed}"
        )
