"""``pysoftq inspect``: the content of a compressed file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table
from rich.text import Text

from pysoftq.cli.paths import UserPath
from pysoftq.cli.tables import print_table

if TYPE_CHECKING:
    from pysoftq.artifact import ArtifactInfo


@click.command("inspect")
@click.argument("file", type=UserPath(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def inspect(file: Path, as_json: bool) -> None:
    """Show the layers of the compressed FILE, their clusters and bit-widths, and its size.

    Altered, truncated and foreign files are refused.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.artifact import inspect_compressed

    info = inspect_compressed(file)
    if as_json:
        click.echo(json.dumps(info.to_dict()))
        return
    print_table(layer_table(info, title=file.name))
    click.echo(parts_line(info))
    click.echo(size_line(info))


def layer_table(info: ArtifactInfo, title: str) -> Table:
    """One row for each weight tensor, then the means of Eq. 8.

    The bytes of a layer are those of its codebooks and indices. If a layer has several codebooks,
    a column shows the granularity.
    """
    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    segmented = any(layer.granularity != "layer" for layer in info.layers)
    for heading in (
        *("N", "K", "bits (log2 K)", "container bits", "entropy bits", "bytes", "coding"),
        *(["granularity"] if segmented else []),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in info.layers:
        table.add_row(
            Text(layer.name),
            f"{layer.N:,}",
            f"{layer.K:,}",
            f"{layer.bits:.3f}",
            str(layer.container_bits),
            f"{layer.entropy_bits:.3f}",
            f"{layer.bytes_on_disk:,}",
            layer.coding,
            *([layer.granularity] if segmented else []),
        )
    table.add_section()
    means = (info.mean_bits, info.container_bits, info.entropy_bits)
    weights, taken = (
        sum(getattr(layer, name) for layer in info.layers) for name in ("N", "bytes_on_disk")
    )
    table.add_row("all", f"{weights:,}", "", *(f"{mean:.3f}" for mean in means), f"{taken:,}")
    return table


def parts_line(info: ArtifactInfo) -> str:
    """The bytes of the parts of the file."""
    return "bytes: " + ", ".join(f"{kind} {size:,}" for kind, size in info.bytes_by_kind.items())


def size_line(info: ArtifactInfo) -> str:
    """Bytes on disk and in float32, and the model that the file can rebuild."""
    model = "not stored" if info.model is None else json.dumps(info.model)
    return (
        f"{info.bytes_on_disk:,} bytes on disk, {info.bytes_float32:,} in float32 "
        f"(ratio {info.ratio:.3f}); format version {info.format_version}; model: {model}"
    )
