"""``pysoftq export``: conversion of a compressed file to other formats."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli.tables import print_table

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = """\b
Examples:
  pysoftq export runs/1/compressed.safetensors --onnx net.onnx
  pysoftq export net.safetensors --onnx net.onnx --coreml net.mlpackage
  pysoftq export net.safetensors --state-dict dense.pt
  pysoftq export net.safetensors --onnx net.onnx --model nets:make_net --input-shape 3,32,32
"""

_OUT = click.Path(path_type=Path)


def shape(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[int] | None:
    """Whole numbers from a comma-separated list."""
    del context, parameter
    if value is None:
        return None
    try:
        lengths = [int(part) for part in value.split(",")]
    except ValueError:
        lengths = [0]
    if min(lengths) < 1:
        raise click.BadParameter(f"{value!r} is not a list of lengths such as 3,32,32")
    return lengths


@click.command("export", epilog=EXAMPLES)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--onnx",
    metavar="OUT.onnx",
    type=_OUT,
    help="ONNX with indices and codebooks, from which the file's first nodes rebuild the weights "
    "(extra onnx).",
)
@click.option(
    "--coreml",
    metavar="OUT.mlpackage",
    type=_OUT,
    help="Core ML package with palettes, for iOS 18, macOS 15 and later; one input at a time "
    "(extra coreml).",
)
@click.option(
    "--state-dict",
    metavar="OUT.safetensors|OUT.pt",
    type=_OUT,
    help="Plain state dict with every weight in full, for tools that read PyTorch weights.",
)
@click.option(
    "--input-shape",
    metavar="C,H,W",
    callback=shape,
    help="Shape of one input, without the batch.  [default: as in FILE]",
)
@click.option(
    "--input-dtype",
    type=click.Choice(["float32", "int64"]),
    default="float32",
    show_default=True,
    help="With --input-shape: int64 for a network that takes tokens.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="Function without arguments (or class) that builds the network, if FILE does not "
    "specify it; imported from the current folder or an installed package.",
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def export(
    file: Path,
    onnx: Path | None,
    coreml: Path | None,
    state_dict: Path | None,
    input_shape: list[int] | None,
    input_dtype: str,
    model: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert the compressed FILE to one or more of --onnx, --coreml and --state-dict.

    Clusters are kept where the format supports them; a table lists the form of each weight. Values
    are bitwise identical, except in Core ML, which computes in float16.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.artifact import inspect_compressed, load_compressed
    from pysoftq.export import to_coreml, to_onnx, to_state_dict
    from pysoftq.export.target import Format, check_target

    if onnx is None and coreml is None and state_dict is None:
        raise click.UsageError("missing format: pass --onnx, --coreml or --state-dict")
    wanted: dict[Format, Path | None] = {"onnx": onnx, "coreml": coreml, "state_dict": state_dict}
    for kind, path in wanted.items():
        if path is not None:
            check_target(path, kind, force)
    network = file if model is None else load_compressed(file, build(model))
    metadata = inspect_compressed(file).metadata
    if input_shape is not None:
        metadata["input"] = {"shape": input_shape, "dtype": input_dtype}
    reports = []
    if onnx is not None:
        reports.append(to_onnx(network, onnx, metadata=metadata, overwrite=force))
    if coreml is not None:
        reports.append(to_coreml(network, coreml, metadata=metadata, overwrite=force))
    if state_dict is not None:
        reports.append(to_state_dict(network, state_dict, overwrite=force))
    if as_json:
        click.echo(json.dumps([report.to_dict() for report in reports]))
        return
    for report in reports:
        print_table(report.table())
        click.echo(f"written: {report.path} ({report.bytes_on_disk:,} bytes)")


def build(name: str) -> nn.Module:
    """What MODULE:FUNCTION returns; the working folder is searched for modules first.

    Raises BadParameter where it cannot be found, or gives no network.
    """
    from torch import nn

    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise _bad_model(f"{name!r} is not of the form MODULE:FUNCTION, such as nets:make_net")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise _bad_model(f"cannot find {name!r}: {error}") from error
    finally:
        sys.path.pop(0)
    model = function()
    if not isinstance(model, nn.Module):
        raise _bad_model(f"{name!r} returns a {type(model).__name__}, not a network")
    return model


def _bad_model(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--model")
