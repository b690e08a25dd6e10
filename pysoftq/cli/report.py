"""``pysoftq report``: one HTML page about a run or a sweep."""

from __future__ import annotations

from pathlib import Path

import click

from pysoftq.cli.paths import UserPath, check_run_or_sweep
from pysoftq.cli.phase import read_study, storage_option

EXAMPLES = """\b
Examples:
  pysoftq report runs/1
  pysoftq report sweeps/digits --out digits.html
"""


@click.command("report", epilog=EXAMPLES)
@click.argument(
    "folder", metavar="RUN|SWEEP", type=UserPath(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--out",
    type=UserPath(dir_okay=False, path_type=Path),
    help="File to write.  [default: report.html in the folder]",
)
@storage_option
def report(folder: Path, out: Path | None, storage: str | None) -> None:
    """Write one self-contained HTML page about a folder of pysoftq compress or pysoftq sweep.

    The page of a run shows its warnings, the comparison with the pretrained network and with
    histogram-equalized quantization, the networks of a front, lines of Python that load the
    network, losses and clusters against time, the layers, the weights of the largest layer in each
    epoch, all figures (also those of pysoftq flatness), options and the command line.

    The page of a sweep, which may still be running, shows its phase diagrams and every point with
    its seeds, bits, accuracy and command line.
    """
    from pysoftq.analysis.page import run_page, sweep_page, write_page
    from pysoftq.sweep.folder import SweepFolder

    check_run_or_sweep(folder)
    target = out or folder / "report.html"
    if SweepFolder(folder).exists:
        text = sweep_page(read_study(folder, storage)[0], SweepFolder(folder).spec())
    else:
        text = run_page(folder, target.parent)
    path = write_page(text, target)
    click.echo(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
