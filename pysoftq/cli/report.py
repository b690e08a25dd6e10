"""``pysoftq report``: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

EXAMPLES = """\b
Examples:
  pysoftq report runs/1
  pysoftq report runs/1 --out /tmp/run.html
"""


@click.command("report", epilog=EXAMPLES)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: RUN/report.html]",
)
def report(run: Path, out: Path | None) -> None:
    """Write one self-contained HTML page about RUN, a folder of pysoftq compress.

    Summary, comparison with histogram-equalized quantization, losses and clusters against time,
    layers, the condensing of the largest layer moment by moment, all figures (those of pysoftq
    flatness too, where RUN holds them), options and the command line. It needs no network.
    """
    from pysoftq.analysis.page import run_page, write_page

    path = write_page(run_page(run), out or run / "report.html")
    click.echo(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
