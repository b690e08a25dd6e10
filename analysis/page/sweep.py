"""The page of a sweep: its phase diagrams, point by point."""

from __future__ import annotations

from collections.abc import Callable

from pysoftq.analysis.figures import phase as figures
from pysoftq.analysis.phase import PhaseStudy, Statistic
from pysoftq.analysis.phase import Point as GridPoint
from pysoftq.run.config import command_line
from pysoftq.sweep.grid import Run, SweepSpec

from .charts import Axis, Chart, Point, Series
from .parts import Card, Picture, Table, wide
from .render import render

SECTIONS = ("Summary", "Points", "Figures")
_CELL = 9  # radius of a point of a phase diagram


def sweep_page(study: PhaseStudy, spec: SweepSpec) -> str:
    """The report of a sweep as HTML; points without a finished run are left out."""
    lost = study.measure.lost
    texts = {point: _point_text(point, spec, lost) for point in study.points}
    base = spec.base()
    beat = [number for number, point in enumerate(study.points) if point.beats]
    return render(
        "sweep.html",
        name=study.name,
        lead=f"{base.model} on {base.dataset}: {study.runs} runs, {len(study.points)} points",
        sections=SECTIONS,
        cards=_cards(study),
        front=_front(study, texts),
        maps=[
            _map(study, texts, "Mean bits", lambda point: point.refined.bits.mean),
            _map(study, texts, "Degradation", lambda point: point.refined.degradation.mean),
        ],
        points=Table(
            ("h", "w", "Seeds", "Degradation", "Bits", "Better seeds", "Pareto", "Command"),
            [
                [
                    f"{point.h:g}",
                    f"{point.w:g}",
                    str(point.seeds),
                    _mean(point.refined.degradation),
                    _mean(point.refined.bits),
                    str(point.seeds_that_beat),
                    "yes" if point.pareto else "",
                    _command(point, spec),
                ]
                for point in study.points
            ],
            marked=tuple(beat),
        ),
        figures=_pictures(study),
    )


def _pictures(study: PhaseStudy) -> list[Picture]:
    pictures = [
        wide(figures.draw_phase(study), "Degradation and bits over (h, w) (Fig. 2A–D)"),
        wide(figures.draw_before(study), "Before refinement (Fig. 6)"),
    ]
    if study.varied:
        variation = figures.draw_variation(study)
        pictures.append(wide(variation, "Coefficients of variation over seeds (Fig. 5)"))
    return pictures


def _cards(study: PhaseStudy) -> list[Card]:
    reference, lost = study.reference, study.measure.lost
    better = [point for point in study.points if point.beats]
    flattest = min(study.points, key=lambda point: point.refined.degradation.mean)
    cards = [
        Card(
            "Better than 4-bit HEQ",
            f"{len(better)} of {len(study.points)} points",
            f"in {study.measure.merit} and bits; HEQ-4 loses {reference.degradation:.2f} {lost}",
        ),
        Card(
            "Least degradation",
            f"{flattest.refined.degradation.mean:.2f} {lost}",
            f"at {flattest.refined.bits.mean:.2f} bits: h = {flattest.h:g}, w = {flattest.w:g}",
        ),
    ]
    if better:
        smallest = min(better, key=lambda point: point.refined.bits.mean)
        note = f"among those better than HEQ-4: h = {smallest.h:g}, w = {smallest.w:g}"
        cards.append(Card("Fewest bits", f"{smallest.refined.bits.mean:.2f}", note))
    return cards


def _front(study: PhaseStudy, texts: dict[GridPoint, str]) -> Chart:
    """Bits against degradation: one series for each w, the Pareto front, HEQ."""

    def place(point: GridPoint) -> Point:
        return Point(point.refined.bits.mean, point.refined.degradation.mean, texts[point])

    lost = study.measure.lost
    front = sorted((place(p) for p in study.points if p.pareto), key=lambda point: point.x)
    heq = [
        Point(one.bits, one.degradation, f"HEQ-{one.bits}\n{one.degradation:.2f} {lost} lost")
        for one in study.baselines
        if one.bits in (3, 4, 5)
    ]
    series = [Series("Pareto front", front, colour=6)]
    for number, w in enumerate(study.w):
        points = [place(point) for point in study.points if point.w == w]
        shade = number / max(len(study.w) - 1, 1)
        series.append(Series(f"w = {w:g}", points, shade=shade, line=False, radius=5))
    series.append(Series("HEQ", heq, colour=1, line=False, radius=6))
    return Chart("Degradation against bits", Axis("mean bits"), Axis(f"{lost} lost"), series)


def _map(
    study: PhaseStudy,
    texts: dict[GridPoint, str],
    name: str,
    value: Callable[[GridPoint], float],
) -> Chart:
    """A phase diagram: one series per point, shaded by its rank."""
    ranked = sorted(study.points, key=value)
    series = [
        Series(
            texts[point],
            [Point(point.h, point.w, texts[point])],
            shade=ranked.index(point) / max(len(ranked) - 1, 1),
            line=False,
            radius=_CELL,
        )
        for point in study.points
    ]
    title = f"{name}, from low (violet) to high (green)"
    return Chart(title, Axis("h", log=min(study.h) > 0), Axis("w"), series, legend=False)


def _point_text(point: GridPoint, spec: SweepSpec, lost: str) -> str:
    better = " (better than HEQ-4)" if point.beats else ""
    return (
        f"h {point.h:g}, w {point.w:g}, {point.seeds} seeds{better}\n"
        f"{_mean(point.refined.degradation)} {lost} lost, {_mean(point.refined.bits)} bits\n"
        f"{_command(point, spec)}"
    )


def _command(point: GridPoint, spec: SweepSpec) -> str:
    return command_line(spec.config(Run(point.h, point.w, spec.base().seed)))


def _mean(statistic: Statistic) -> str:
    error = "" if statistic.stderr is None else f" ± {statistic.stderr:.2g}"
    return f"{statistic.mean:.2f}{error}"
