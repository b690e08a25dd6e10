"""Measuring the landscape around the networks of a run; see `flatness` for what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pysoftq.analysis.flatness import Comparison, Curvature, FlatnessStudy, Line, Plane
from pysoftq.analysis.hessian import leading_eigenvalues, probe_diagonal
from pysoftq.analysis.journal import Journal
from pysoftq.analysis.landscape import (
    Landscape,
    RunStates,
    State,
    choose_images,
    combine,
    distances,
    perturb,
)
from pysoftq.analysis.options import FlatnessOptions

Progress = Callable[[int, int], None]

# To be raised whenever a key comes to mean another value: kept values are then measured anew.
VERSION = 2


def study_flatness(
    states: RunStates,
    options: FlatnessOptions | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FlatnessStudy:
    """Measure the flatness of the landscape around the networks of a run.

    Every value is kept in the folder ``flatness`` of the run as soon as it is measured: the same
    call again resumes where it was interrupted, and more draws or points cost only what is new.

    Args:
        states: of the run, from `pysoftq.analysis.landscape.read_states`.
        options: what to measure.
        device: where the network runs.
        progress: called with (values at hand, values in all) before each value and at the end.

    Raises:
        ValueError: a network is where the pretrained one is, there is no plane through the
            networks, or a loss is not finite.
        OSError: the values cannot be written.
    """
    options = options or FlatnessOptions()
    names = ("half", "images", "normalization", "seed")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"version": VERSION, "states": states.digest(), "device": torch.device(device).type}
    survey = Survey(states, options, torch.device(device))
    journal = Journal(states.folder / "flatness", settings)
    tasks = survey.tasks()
    values = {}
    for number, (key, measure) in enumerate(tasks.items()):
        if progress is not None:
            progress(number, len(tasks))
        values[key] = journal.get(key, measure)
    if progress is not None:
        progress(len(tasks), len(tasks))
    return survey.study(states.folder.resolve().name, values)


class Survey:
    """The values that a study requires, each under a key, and the study made of them."""

    def __init__(self, states: RunStates, options: FlatnessOptions, device: torch.device) -> None:
        images = choose_images(getattr(states.data, options.half), options.images, options.seed)
        few = choose_images(images, options.hessian_images, options.seed)
        calibration = None
        if options.normalization == "reestimate":
            calibration = choose_images(states.data.train, options.images, options.seed).to(device)
        model, data = states.model.to(device), states.data.to(device)
        self.options = options
        self.landscape = Landscape(model, data, images.to(device), calibration)
        self.curved = Landscape(model, data, few.to(device), calibration)
        self.names = self.landscape.names
        self.pretrained = states.pretrained
        self.soft, self.heq = "soft", f"HEQ-{options.bits}"
        self.ends = {self.soft: states.soft, self.heq: states.equalized(options.bits)}
        self.distances = {
            name: distances(self.pretrained, state, self.names) for name, state in self.ends.items()
        }
        for name, found in self.distances.items():
            if not found.any():
                raise ValueError(f"the network {name!r} is where the pretrained one is")
        line, points = options.line, options.curvatures
        self.line = np.linspace(-0.25, 1.25, line) if line else np.zeros(0)
        self.points = np.linspace(0, 1, points) if points else np.zeros(0)
        self.corners = self._corners()
        (far, _), (_, off_line) = self.corners
        if options.plane and off_line < 1e-6 * far:
            raise ValueError("all three networks are on one line: there is no plane through them")
        self.x, self.y = self._axes()

    def tasks(self) -> dict[str, Callable[[], Any]]:
        """Each value's key and how to measure it, what matters most first."""
        tasks: dict[str, Callable[[], Any]] = {
            "pretrained": partial(self.landscape.loss, self.pretrained)
        }
        for name in self.ends:
            tasks[f"end/{name}"] = partial(self._end, name)
        for draw in range(self.options.draws):
            for name in self.ends:
                tasks[f"random/{name}/{draw}"] = partial(self._random, name, draw)
        for name in self.ends:
            for t in self.line:
                tasks[_line_key(name, t)] = partial(self._loss_at, {name: t})
        for y in self.y:
            for x in self.x:
                tasks[self._plane_key(x, y)] = partial(self._loss_at, self._on_plane(x, y))
        for name in self.ends:
            for t in self.points:
                key = self._point_key(name, t)
                tasks[f"{key}/{self._eigen_key()}"] = partial(self._eigenvalues, name, t)
                tasks[f"{key}/along/{name}"] = partial(self._along, name, t)
                for probe in range(self.options.probes):
                    tasks[f"{key}/probe/{probe}"] = partial(self._probe, name, t, probe)
        return tasks

    def study(self, run: str, values: Mapping[str, Any]) -> FlatnessStudy:
        """The study, from the values of all tasks."""
        plane = None
        if len(self.x):
            losses = [[values[self._plane_key(x, y)] for x in self.x] for y in self.y]
            soft, heq = self.corners
            plane = Plane(self.x, self.y, np.array(losses), soft, heq)
        lines = [
            Line(name, self.line, np.array([values[_line_key(name, t)] for t in self.line]))
            for name in self.ends
            if len(self.line)
        ]
        return FlatnessStudy(
            run=run,
            options=self.options,
            images=len(self.landscape.images),
            parameters=self.landscape.size,
            pretrained_loss=values["pretrained"],
            soft=self._comparison(self.soft, values),
            heq=self._comparison(self.heq, values),
            lines=tuple(lines),
            plane=plane,
            curvatures=tuple(
                self._curvature(name, values) for name in self.ends if len(self.points)
            ),
        )

    # ------------------------------------------------------------------------- what is measured

    def _end(self, name: str) -> dict[str, float]:
        changes = self.landscape.losses(self.ends[name]) - self.landscape.losses(self.pretrained)
        stderr = changes.std(ddof=1) / len(changes) ** 0.5
        return {"change": float(changes.mean()), "stderr": float(stderr)}

    def _random(self, name: str, draw: int) -> dict[str, float]:
        seed = (self.options.seed, list(self.ends).index(name), draw)
        state = perturb(self.pretrained, self.names, self.distances[name], seed)
        distance = float(np.linalg.norm(distances(self.pretrained, state, self.names)))
        return {"loss": self.landscape.loss(state), "distance": distance}

    def _state(self, coordinates: Mapping[str, float]) -> State:
        terms = [(float(a), self.ends[name]) for name, a in coordinates.items()]
        return combine(self.pretrained, terms)

    def _loss_at(self, coordinates: Mapping[str, float]) -> float:
        return self.landscape.loss(self._state(coordinates))

    def _eigenvalues(self, name: str, t: float) -> dict[str, list[float]]:
        product = self.curved.hessian_at(self._state({name: t}))
        count = self.options.eigenvalues
        found = leading_eigenvalues(product, self.curved.size, count, seed=self.options.seed)
        return {"values": found.values.tolist(), "residuals": found.residuals.tolist()}

    def _along(self, name: str, t: float) -> float:
        product = self.curved.hessian_at(self._state({name: t}))
        direction = self._flat(self.ends[name]) - self._flat(self.pretrained)
        direction /= np.linalg.norm(direction)
        return float(direction @ product(direction))

    def _probe(self, name: str, t: float, probe: int) -> list[float]:
        """Estimates of the trace of each layer's block of the Hessian."""
        product = self.curved.hessian_at(self._state({name: t}))
        diagonal = probe_diagonal(product, self.curved.size, self.options.seed, probe)
        blocks = np.split(diagonal, np.cumsum(self._sizes())[:-1])
        return [float(block.sum()) for block in blocks]

    # ----------------------------------------------------------------------- what comes of it

    def _comparison(self, name: str, values: Mapping[str, Any]) -> Comparison:
        draws = [values[f"random/{name}/{draw}"] for draw in range(self.options.draws)]
        found = self.distances[name]
        return Comparison(
            name=name,
            loss_change=values[f"end/{name}"]["change"],
            loss_change_stderr=values[f"end/{name}"]["stderr"],
            distance=float(np.linalg.norm(found)),
            layers={
                layer: float(distance)
                for layer, distance in zip(self.names, found, strict=True)
                if distance > 0
            },
            random_loss_changes=np.array([draw["loss"] for draw in draws]) - values["pretrained"],
            random_distances=np.array([draw["distance"] for draw in draws]),
        )

    def _curvature(self, name: str, values: Mapping[str, Any]) -> Curvature:
        keys = [self._point_key(name, t) for t in self.points]
        spectra = [values[f"{key}/{self._eigen_key()}"] for key in keys]
        count = self.options.probes
        blocks = np.array([[values[f"{key}/probe/{i}"] for i in range(count)] for key in keys])
        squares = self.distances[name] ** 2
        traces = blocks.sum(axis=2)
        matched = blocks @ (squares / self._sizes()) / squares.sum()
        return Curvature(
            name=name,
            t=self.points,
            eigenvalues=np.array([spectrum["values"] for spectrum in spectra]),
            residuals=np.array([spectrum["residuals"] for spectrum in spectra]),
            trace=traces.mean(axis=1),
            trace_stderr=traces.std(axis=1, ddof=1) / count**0.5,
            along=np.array([values[f"{key}/along/{name}"] for key in keys]),
            matched=matched.mean(axis=1),
            matched_stderr=matched.std(axis=1, ddof=1) / count**0.5,
        )

    # ------------------------------------------------------------------- coordinates and keys

    def _flat(self, state: State) -> NDArray[np.float64]:
        parts = [state[name].double().flatten() for name in self.names]
        return np.asarray(torch.cat(parts).numpy())

    def _sizes(self) -> NDArray[np.int64]:
        return np.array([self.pretrained[name].numel() for name in self.names])

    def _corners(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Soft network and HEQ on the plane."""
        origin = self._flat(self.pretrained)
        to_soft, to_heq = (self._flat(state) - origin for state in self.ends.values())
        far = float(np.linalg.norm(to_soft))
        x = float(to_soft @ to_heq) / far
        return (far, 0.0), (x, float(np.linalg.norm(to_heq - x / far * to_soft)))

    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        count = self.options.plane
        (soft, _), (x, y) = self.corners
        # A quarter of the larger side beyond the three networks.
        low, high = min(0.0, x), max(soft, x)
        margin = max(high - low, y) / 4
        if not count:
            return np.zeros(0), np.zeros(0)
        return (
            np.linspace(low - margin, high + margin, count),
            np.linspace(-margin, y + margin, count),
        )

    def _on_plane(self, x: float, y: float) -> dict[str, float]:
        (soft, _), (heq_x, heq_y) = self.corners
        along_heq = y / heq_y
        return {self.soft: (x - along_heq * heq_x) / soft, self.heq: along_heq}

    def _plane_key(self, x: float, y: float) -> str:
        return f"plane/{self.heq}/{x:.9g}/{y:.9g}"

    def _point_key(self, name: str, t: float) -> str:
        where = f"{name}/{t:.9g}" if t else "pretrained"
        return f"curvature/{len(self.curved.images)}/{where}"

    def _eigen_key(self) -> str:
        return f"eigenvalues/{self.options.eigenvalues}"


def _line_key(name: str, t: float) -> str:
    return f"line/{name}/{t:.9g}"
