"""``pysoftq export``: conversion of a compressed file to other formats."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli.networks import build, model_option
from pysoftq.cli.paths import CompressedFile, UserPath
from pysoftq.cli.tables import print_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pysoftq.export import ExportReport, Verification
    from pysoftq.export.target import Format

EXAMPLES = """\b
Examples:
  pysoftq export runs/1/compressed.safetensors --onnx net.onnx
  pysoftq export net.safetensors --onnx net.onnx --coreml net.mlpackage
  pysoftq export net.safetensors --state-dict dense.pt
  pysoftq export net.safetensors --onnx net.onnx --model nets:make_net --input-shape 3,32,32
  pysoftq export runs/1/compressed.safetensors --onnx net.onnx --dynamic x:0 --verify 256
"""

_OUT = UserPath(path_type=Path)


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


def axes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[int]]:
    """Axes by the name of their input."""
    del context, parameter
    found: dict[str, list[int]] = {}
    for value in values:
        name, _, axis = value.rpartition(":")
        if not name or not axis.isdecimal():
            raise click.BadParameter(f"{value!r} is not of the form NAME:AXIS, such as tokens:1")
        found.setdefault(name, []).append(int(axis))
    return found


@click.command("export", epilog=EXAMPLES)
@click.argument("file", type=CompressedFile())
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
@model_option
@click.option(
    "--dynamic",
    metavar="NAME:AXIS",
    multiple=True,
    callback=axes,
    help="Axis of an input of the ONNX file that must accept any length, such as tokens:1; fails "
    "if the network fixes it. May be repeated.  [default: every axis that the network allows]",
)
@click.option(
    "--verify",
    metavar="N",
    type=click.IntRange(1),
    help="Run the written files on N inputs and compare the outputs with those of the network: "
    "test data next to FILE in the folder of a run, else random numbers. Requires onnxruntime for "
    "ONNX. Exit code 1 if they differ.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def export(
    file: Path,
    onnx: Path | None,
    coreml: Path | None,
    state_dict: Path | None,
    input_shape: list[int] | None,
    input_dtype: str,
    model: str | None,
    dynamic: dict[str, list[int]],
    verify: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert the compressed FILE to one or more of --onnx, --coreml and --state-dict.

    FILE may also be the folder of a run. Clusters are kept where the format supports them; a table
    lists the form of each weight. Values are bitwise identical, except in Core ML, which computes
    in float16.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.artifact import inspect_compressed, load_compressed
    from pysoftq.export import ExportError

    targets: dict[Format, Path | None] = {"onnx": onnx, "coreml": coreml, "state_dict": state_dict}
    chosen = {kind: path for kind, path in targets.items() if path is not None}
    if not chosen:
        raise click.UsageError("missing format: pass --onnx, --coreml or --state-dict")
    if dynamic and onnx is None:
        raise click.UsageError("--dynamic requires --onnx")
    check(chosen, force, verify=verify is not None)
    network = file if model is None else load_compressed(file, build(model))
    metadata = inspect_compressed(file).metadata
    if input_shape is not None:
        metadata["input"] = {"shape": input_shape, "dtype": input_dtype}
    reports = write(network, chosen, metadata, dynamic)
    if not as_json:
        tell(reports)
    found: dict[str, Verification] = {}
    known = None
    if verify is not None:
        known = None if input_shape or model else inputs_of_run(file, verify)
        found = verified(network, reports, metadata, known, verify)
    if as_json:
        seen = {path: verification.to_dict() for path, verification in found.items()}
        rows = [{**one.to_dict(), "verification": seen.get(one.path)} for one in reports]
        click.echo(json.dumps(rows))
    else:
        for verification in found.values():
            kind = "random inputs" if known is None else "test data"
            click.echo(f"verified with {kind}: {verification}")
    if failed := [path for path, verification in found.items() if not verification.passed]:
        raise ExportError(f"{', '.join(failed)}: the outputs differ from those of the network")


def check(chosen: Mapping[Format, Path], force: bool, verify: bool) -> None:
    """Raise before anything is written, if a path or a package is not fit."""
    from pysoftq.export.target import check_target
    from pysoftq.export.verify import check_runtime

    for kind, path in chosen.items():
        check_target(path, kind, force)
        if verify and kind != "coreml":  # which runs on macOS only
            check_runtime(path)


def write(
    network: nn.Module | Path,
    chosen: Mapping[Format, Path],
    metadata: Mapping[str, Any],
    dynamic: Mapping[str, Sequence[int]],
) -> list[ExportReport]:
    """Write each format, over files that are there; `check` has refused those."""
    from pysoftq.export import ExportWarning, to_coreml, to_onnx, to_state_dict

    reports = []
    for kind, path in chosen.items():
        if kind == "state_dict":
            reports.append(to_state_dict(network, path, overwrite=True))
        elif kind == "coreml":
            reports.append(to_coreml(network, path, metadata=metadata, overwrite=True))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExportWarning)  # they are in the report
                reports.append(
                    to_onnx(network, path, dynamic=dynamic, metadata=metadata, overwrite=True)
                )
    return reports


def tell(reports: Sequence[ExportReport]) -> None:
    """Print what was written, and warnings about it."""
    for report in reports:
        print_table(report.table())
        click.echo(f"written: {report.path} ({report.bytes_on_disk:,} bytes)")
        for one in report.inputs:
            click.echo(f"input {one}")
        for note in report.notes:
            click.echo(f"warning: {report.path}: {note}", err=True)


def verified(
    network: nn.Module | Path,
    reports: Sequence[ExportReport],
    metadata: Mapping[str, Any],
    known: Tensor | None,
    count: int,
) -> dict[str, Verification]:
    """The comparison of each file that can be run here, by its path."""
    from pysoftq.export import verify_export

    found = {}
    for report in reports:
        if report.path.endswith(".mlpackage") and platform.system() != "Darwin":
            click.echo(f"not verified: {report.path}: Core ML runs on macOS only", err=True)
            continue
        found[report.path] = verify_export(
            network, report.path, known, count=count, metadata=metadata
        )
    return found


def inputs_of_run(file: Path, count: int) -> Tensor | None:
    """The first test inputs of the run that wrote a compressed file; None if it is of no run."""
    import torch

    from pysoftq.run.config import make_config, read_config
    from pysoftq.run.folder import RunFolder
    from pysoftq.run.setup import read_data

    folder = RunFolder.of(file)
    own = file.name == folder.compressed.name or file.parent.name == folder.rungs.name
    if not own or not folder.config.is_file():
        return None
    config = make_config(read_config(folder.config), {"download": False})
    try:
        data = read_data(config)
    except (OSError, RuntimeError, ValueError) as error:
        click.echo(f"verifying with random inputs: {config.dataset}: {error}", err=True)
        return None
    found: list[Tensor] = []
    for inputs, _ in data.ordered(data.test):
        found.append(inputs)
        if sum(map(len, found)) >= count:
            break
    return torch.cat([inputs for inputs in found if inputs.shape[1:] == found[0].shape[1:]])[:count]
