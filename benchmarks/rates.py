"""The figure of whole-model operations: nanoseconds for each weight against size.

``python -m benchmarks.rates FILE...`` draws it from results of the cases ``whole_model``, ``files``
and ``palettes`` on one machine, beside the first file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.figure import BLUE, GREEN, GREY, VERMILLION
from pysoftq.analysis.figures import save_figure

NAME = "whole-model-cpu"
UNIT = "ns per weight"
MEMORY = re.compile(rf"whole_model/([^/]+)/memory/read, {UNIT}")


@dataclass(frozen=True)
class Panel:
    """A panel: lines by the pattern of their keys, of which the first group is the size.

    Attributes:
        own, peers: lines of pysoftq and of others.
        target: ns per weight at most.
    """

    title: str
    own: Mapping[str, str]
    peers: Mapping[str, str]
    target: float | None = None


def _whole(name: str, which: str = "") -> str:
    return f"whole_model/([^/]+)/{name}/{which}{', ' if which else ''}{UNIT}"


def _file(operation: str, which: str) -> str:
    return f"files/([^/]+)/{operation}, 16 clusters/{which}, {UNIT}"


PANELS = (
    Panel(
        "Construction",
        {"SoftQuantizer": _whole("construction")},
        {name: _whole("construction", name) for name in ("torch", "NumPy")},
        1.5,
    ),
    Panel(
        "Clusters found and written",
        {"find_bins, write": _whole("clusters")},
        {name: _whole("clusters", name) for name in ("torch.bucketize", "np.digitize")},
        6,
    ),
    Panel(
        "Energy",
        {"layers": _whole("energy", "layer"), "channels": _whole("energy", "channel")},
        {},
        1.5,
    ),
    Panel(
        "A step of moving weights, 16 values",
        {"Codebooks.write": f"palettes/([^/]+)/moving weights/{UNIT}"},
        {"torch.bucketize": f"palettes/([^/]+)/moving weights/torch.bucketize, {UNIT}"},
        6,
    ),
    Panel(
        "Distinct values",
        {f"{found:,} values": _whole(f"{found} values") for found in (16, 256, 65536)},
        {f"{name}, 256": _whole("256 values", name) for name in ("torch.unique", "np.unique")},
        8,
    ),
    Panel(
        "Palette of 16 values",
        {"kmeans": f"palettes/([^/]+)/k-means/{UNIT}"},
        {name: f"palettes/([^/]+)/k-means/{name}, {UNIT}" for name in ("coremltools", "torchao")},
    ),
    Panel(
        "Saving, 16 clusters",
        {coding: _file("saving", coding) for coding in ("packed", "entropy")},
        {name: _file("saving", name) for name in ("NumPy", "zstandard", "torch.save")},
    ),
    Panel(
        "Loading, 16 clusters",
        {coding: _file("loading", coding) for coding in ("packed", "entropy")},
        {name: _file("loading", name) for name in ("NumPy", "zstandard", "torch.save")},
    ),
)


def draw(measures: Mapping[str, Any], note: str) -> Figure:
    """All panels; ours in colours, peers in grey, the target and reading the memory as lines."""
    figure = Figure(figsize=(12.4, 13.2))
    panels = figure.subplots(4, 2, sharex=True)
    figure.subplots_adjust(
        left=0.055, right=0.85, bottom=0.045, top=0.945, wspace=0.68, hspace=0.24
    )
    for axes, panel in zip(panels.flat, PANELS, strict=True):
        for names, colours, dash, marker in (
            (panel.own, (BLUE, GREEN, VERMILLION), "-", "o"),
            (panel.peers, (GREY,) * len(panel.peers), "--", "sD^"),
        ):
            for i, (name, pattern) in enumerate(names.items()):
                _line(axes, measures, pattern, name, colours[i], dash, marker[i % len(marker)])
        if panel.target is not None:
            axes.axhline(panel.target, color=VERMILLION, linewidth=1, linestyle=":", label="target")
        reading = sorted(_found(measures, MEMORY.pattern))
        if reading:
            axes.fill_between(
                *zip(*reading, strict=True),
                alpha=0.15,
                color=GREY,
                label="reading the memory",
                linewidth=0,
            )
        _dress(axes, panel.title)
    for axes in panels[-1]:
        axes.set_xlabel("number of weights N")
    figure.text(0.06, 0.975, note, fontsize=9, color=GREY)
    return figure


def _line(  # noqa: PLR0913 - what a line is drawn by
    axes: Axes,
    measures: Mapping[str, Any],
    pattern: str,
    name: str,
    colour: str,
    dash: str,
    marker: str,
) -> None:
    points = sorted(_found(measures, pattern))
    if not points:
        return
    ours = dash == "-"
    axes.plot(
        *zip(*points, strict=True),
        dash,
        label=name,
        color=colour,
        linewidth=2.2 if ours else 1.1,
        marker=marker,
        markersize=6 if ours else 4.5,
        markerfacecolor=colour if ours else "white",
        markeredgecolor="white" if ours else colour,
        zorder=3 if ours else 2,
    )


def _found(measures: Mapping[str, Any], pattern: str) -> Iterator[tuple[float, float]]:
    for key, measure in measures.items():
        if match := re.fullmatch(pattern, key):
            yield float(match[1]), measure["value"]["median"]


def _dress(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_ylabel(UNIT, fontsize=9)
    axes.tick_params(labelbottom=True, labelsize=9)
    axes.xaxis.set_major_locator(LogLocator(numticks=15))
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 3_000 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=15))
    axes.yaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.grid(which="major", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
            frameon=False,
            fontsize=8.5,
            handlelength=2.6,
        )


def main(files: Sequence[str]) -> int:
    """Draw what the files of results have."""
    if not files:
        raise SystemExit("usage: python -m benchmarks.rates FILE...")
    contents = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    measures = {key: one for content in contents for key, one in content["measures"].items()}
    machine = contents[0]["environment"]
    threads = machine["threads"]
    note = (
        f"{machine['processor']} ({machine['instructions']}), "
        f"{threads} thread{'s' if threads > 1 else ''}; float32; medians of alternating calls"
    )
    save_figure(draw(measures, note), Path(files[0]).parent / NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
