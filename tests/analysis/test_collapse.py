"""Times of collapse against those of paths whose answer is known, their figures and command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex
from PIL import Image
from run_folders import EPOCHS, EVERY, STEPS, metrics, records, write_run

from pysoftq.analysis.collapse import DynamicsStudy, end_groups, last_crossing, study_dynamics
from pysoftq.analysis.dynamics import Run, read_run
from pysoftq.analysis.figures import dynamics as figures
from pysoftq.analysis.figures.style import BLACK
from pysoftq.analysis.results import load_result
from pysoftq.cli.dynamics import dynamics

WIDTH = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), records(), metrics())


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder)


def followed(run: Run, *paths: np.ndarray) -> Run:
    """The run with other trajectories, (T, M) each, of a layer with width WIDTH."""
    columns = np.concatenate(paths, axis=1)
    changed = {"trajectories": columns, "trajectory_width": WIDTH}
    steps = EVERY * np.arange(len(columns))
    return replace(run, records=replace(run.records, **changed, trajectory_steps=steps))


def closing(value: float, offsets: list[float], steps: float) -> np.ndarray:
    """Weights that draw together at a constant speed, all at ``value`` after so many steps."""
    left = np.maximum(1 - EVERY * np.arange(STEPS // EVERY + 1) / steps, 0)
    return value + left[:, None] * np.array(offsets)


def test_linear_collapse_is_found_exactly(run: Run) -> None:
    offsets = [-0.1, -0.05, 0.0, 0.15]
    paths = closing(0.0, offsets, 200), closing(1.0, offsets, 125)
    study = study_dynamics(followed(run, *paths), "x", threshold=0.05)
    start = np.std(offsets) / WIDTH
    per_epoch = STEPS / EPOCHS
    for found in study.collapses:
        assert found.weights == 4
        assert found.start_spread == pytest.approx(start)
        assert found.end_spread == pytest.approx(0, abs=1e-12)
    first = study.collapses[0]
    # Between two records of 200 steps at constant speed, the spread itself is linear.
    for time, bound in ((first.epoch, 0.05), (first.early, 0.1), (first.late, 0.025)):
        assert time == pytest.approx(200 / per_epoch * (1 - bound / start))
    assert study.quartiles[1] == pytest.approx(
        np.median([found.epoch for found in study.collapses])
    )
    assert [found.value for found in study.collapsed] == pytest.approx([1.0, 0.0])


def test_standard_error_is_of_the_weights_and_of_the_recording(run: Run) -> None:
    offsets = [-0.1, -0.05, 0.0, 0.15]
    (found,) = study_dynamics(followed(run, closing(0.0, offsets, 200)), "x").collapses
    times = [
        200 / (STEPS / EPOCHS) * (1 - 0.05 * WIDTH / np.std(np.delete(offsets, left)))
        for left in range(4)
    ]
    jackknife = np.sqrt(3 / 4 * np.sum((times - np.mean(times)) ** 2))
    recording = EVERY / (STEPS / EPOCHS) / np.sqrt(12)
    assert found.stderr == pytest.approx(np.hypot(jackknife, recording))


def test_what_has_not_collapsed_has_no_time(run: Run) -> None:
    wide = np.tile(np.linspace(-0.3, 0.3, 10), (STEPS // EVERY + 1, 1))
    pair = closing(2.0, [-0.1, 0.1], 100)
    study = study_dynamics(followed(run, wide, pair), "x")
    assert [found.weights for found in study.collapses] == [10, 2]
    for found in study.collapses:
        assert (found.epoch, found.stderr, found.early, found.late) == (None,) * 4
    assert study.collapsed == []
    assert study.quartiles is None
    figures.draw_collapse(study)


def test_a_cluster_that_opens_again_counts_from_its_last_collapse() -> None:
    times = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert last_crossing(times, np.array([3.0, 0.5, 2.0, 0.0, 0.0]), 1.0) == (2.5, 1.0)
    assert last_crossing(times, np.array([3.0, 0.5, 2.0, 0.0, 1.0]), 1.0) is None
    assert last_crossing(times, np.zeros(5), 1.0) == (0.0, 0.0)


def test_groups_are_split_at_gaps() -> None:
    values = np.array([0.9, 0.1, 0.3, 0.0, 1.05])
    assert [group.tolist() for group in end_groups(values, 0.25)] == [[3, 1, 2], [0, 4]]
    assert [group.tolist() for group in end_groups(values, 1.0)] == [[3, 1, 2, 0, 4]]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 0.25, float("nan")])
def test_threshold_out_of_range(run: Run, threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold: got .* expected above 0 and below 0\.25"):
        study_dynamics(run, "x", threshold)


def test_panels_show_the_nearest_records(run: Run) -> None:
    figure = figures.draw_densities(run, [0, 1.9, 2.1, 100])
    axes = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == ["epoch 0", "epoch 2", "epoch 6"]
    twins = [axis for axis in figure.axes if axis.lines]
    assert len(twins) == 3
    x, v = twins[-1].lines[0].get_data()
    assert to_hex(twins[-1].lines[0].get_color()) == BLACK
    # Eq. 5 at the end of the run, weight by weight; a bin is how far the weights may sit off.
    theta = run.records.weights_soft.astype(np.float64)
    wells = np.minimum(np.abs(x[:, None] - theta) - run.records.width, 0)
    np.testing.assert_allclose(v, wells.sum(axis=1), atol=theta.size * (x[1] - x[0]))


def test_default_panels_end_with_the_last_epoch(run: Run) -> None:
    titles = [axis.get_title() for axis in figures.draw_densities(run).axes]
    assert [title for title in titles if title] == [f"epoch {n}" for n in (0, 1, 2, 4, 6)]


@pytest.mark.parametrize("layers", [2, 9])
def test_clusters_of_every_layer_are_drawn(run: Run, layers: int) -> None:
    study = study_dynamics(run, "x")
    counts = {f"layer{number}": study.epochs + number + 1 for number in range(layers)}
    axis = figures.draw_clusters(replace(study, clusters=counts)).axes[0]
    assert [line.get_ydata().tolist() for line in axis.lines] == [
        values.tolist() for values in counts.values()
    ]


@pytest.mark.parametrize(("low", "high"), [(80, 118), (3, 120), (5, 5)])
def test_the_axis_of_clusters_has_labels(run: Run, low: int, high: int) -> None:
    study = study_dynamics(run, "x")
    counts = {"a": np.full_like(study.epochs, low), "b": np.full_like(study.epochs, high)}
    figure = figures.draw_clusters(replace(study, clusters=counts))
    figure.canvas.draw()
    axis = figure.axes[0]
    bottom, top = axis.get_ylim()
    shown = [tick for tick in axis.get_yticks() if bottom <= tick <= top]
    assert len(shown) >= (1 if low == high else 2)


def test_animation_shows_the_records_in_order(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FRAMES", 3)
    path = figures.animate(run, tmp_path / "new" / "a.gif")
    with Image.open(path) as image:
        assert image.format == "GIF"
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("L"), dtype=float))
    assert len(frames) == 3
    # Histograms become spikes: there is less ink in each frame.
    ink = [float((255 - frame).sum()) for frame in frames]
    assert ink == sorted(ink, reverse=True)
    assert [file.name for file in path.parent.iterdir()] == ["a.gif"]


def test_command(folder: Path, tmp_path: Path) -> None:
    flags = ["--epochs", "0,6", "--no-animation", "--out", str(tmp_path)]
    result = CliRunner().invoke(dynamics, [str(folder), *flags])
    assert result.exit_code == 0, result.output
    assert "followed weights of linear.weight" in result.stdout
    study = load_result(DynamicsStudy, tmp_path / "dynamics.json")
    assert f"{len(study.collapsed)} of {len(study.collapses)} groups" in result.stdout
    names = ("clusters", "collapse", "densities", "losses", "trajectories")
    drawn = {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"dynamics.json"}


@pytest.mark.usefixtures("undrawn")
def test_command_as_json(folder: Path, tmp_path: Path) -> None:
    flags = ["--epochs", "0,6", "--no-animation", "--out", str(tmp_path)]
    result = CliRunner().invoke(dynamics, [str(folder), *flags, "--json"])
    study = load_result(DynamicsStudy, tmp_path / "dynamics.json")
    content = json.loads(result.stdout)
    assert content["quartiles"] == pytest.approx(study.quartiles)
    assert [found["epoch"] for found in content["clusters"]] == pytest.approx(
        [found.epoch for found in study.collapses]
    )


@pytest.mark.parametrize("epochs", ["", "1,x", "-1", "nan", "1,,2"])
def test_command_refuses_other_epochs(folder: Path, epochs: str) -> None:
    result = CliRunner().invoke(dynamics, [str(folder), "--epochs", epochs])
    assert result.exit_code == 2
    assert "is not a list like 0,1,30" in result.output


def test_command_refuses_epochs_after_the_last(folder: Path) -> None:
    result = CliRunner().invoke(dynamics, [str(folder), "--epochs", "0,7"])
    assert result.exit_code == 2
    assert "7 is after the last epoch, 6" in result.output
