from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import tiny_digits
from torch import Tensor

from pysoftq.analysis.figures import flatness as figures
from pysoftq.analysis.figures import save_figure
from pysoftq.analysis.flatness import Comparison, FlatnessStudy
from pysoftq.analysis.landscape import (
    Landscape,
    RunStates,
    choose_images,
    combine,
    distances,
    perturb,
    read_states,
)
from pysoftq.analysis.options import FlatnessOptions
from pysoftq.analysis.results import load_result, save_result
from pysoftq.analysis.survey import Survey, study_flatness
from pysoftq.baselines import histogram_equalize
from pysoftq.cli.flatness import flatness
from pysoftq.data.images import Images
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import coupled_weights, cpu_state, save_state
from pysoftq.run.config import make_config
from pysoftq.run.evaluation import evaluate

State = dict[str, Tensor]

SMALL: dict[str, Any] = {
    "draws": 3,
    "images": 40,
    "line": 4,
    "plane": 3,
    "curvatures": 2,
    "eigenvalues": 2,
    "probes": 2,
    "hessian_images": 20,
}
CPU = torch.device("cpu")


def moved(state: State, seed: int) -> State:
    """Another network near by, as training leaves it: weights and statistics have changed."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, value in state.items():
        if not value.is_floating_point():
            changed[name] = value + 7
            continue
        noise = 0.05 * torch.randn(value.shape, generator=generator)
        changed[name] = value * noise.exp() if name.endswith("running_var") else value + noise
    return changed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a study reads of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "7"
    folder.mkdir()
    config = make_config({"dataset": "digits", "model": "digits-resnet-small"})
    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(0)
    state = cpu_state(build_model("digits-resnet-small", 10, in_channels=1))
    save_state(state, folder / "pretrained.safetensors")
    save_state(moved(state, seed=1), folder / "soft.safetensors")
    return folder


@pytest.fixture(scope="module")
def study_of(run: Path) -> Callable[[str], FlatnessStudy]:
    """Studies by their normalization that nothing interrupts; not to be changed."""

    @cache
    def study(normalization: str) -> FlatnessStudy:
        curvatures = SMALL["curvatures"] if normalization == "keep" else 0  # take the longest
        chosen = {"normalization": normalization, "curvatures": curvatures}
        options = FlatnessOptions(**{**SMALL, **chosen})
        return study_flatness(read_states(run), options)

    return study


@pytest.fixture
def states(run: Path) -> RunStates:
    return read_states(run)


class Quadratic:
    """L = c + 1/2 sum_i a_i (theta_i - pretrained_i)², in place of a network."""

    def __init__(self, states: RunStates) -> None:
        self.names = tuple(name for name, _ in states.model.named_parameters())
        self.origin = states.pretrained
        rng = np.random.default_rng(2)
        self.scale = {name: rng.uniform(0.5, 2) for name in self.names}
        self.a = np.concatenate(
            [self.scale[name] * rng.uniform(0, 2, self.origin[name].numel()) for name in self.names]
        )
        self.size = self.a.size
        self.images = Images(torch.zeros(5, 8, 8, 1), torch.zeros(5))

    def flat(self, state: Mapping[str, Tensor]) -> np.ndarray:
        parts = [(state[name].double() - self.origin[name]).flatten() for name in self.names]
        return torch.cat(parts).numpy()

    def loss(self, state: Mapping[str, Tensor]) -> float:
        return 0.25 + 0.5 * float(self.a @ self.flat(state) ** 2)

    def losses(self, state: Mapping[str, Tensor]) -> np.ndarray:
        # Image by image, the change is 0, 1/2 … 2 times its mean.
        return 0.25 + (self.loss(state) - 0.25) * np.linspace(0, 2, 5)

    def hessian_at(self, state: Mapping[str, Tensor]) -> Any:
        return lambda vector: self.a * vector


def test_a_quadratic_loss(states: RunStates) -> None:
    options = FlatnessOptions(draws=300, line=7, plane=5, curvatures=3, eigenvalues=3, probes=2)
    survey = Survey(states, options, CPU)
    oracle = Quadratic(states)
    survey.landscape = survey.curved = oracle  # type: ignore[assignment]
    values = {key: measure() for key, measure in survey.tasks().items()}
    study = survey.study("run", json.loads(json.dumps(values)))

    assert study.pretrained_loss == 0.25
    sizes = np.array([states.pretrained[name].numel() for name in oracle.names])
    traces = np.array([block.sum() for block in np.split(oracle.a, np.cumsum(sizes)[:-1])])
    for part, end in ((study.soft, states.soft), (study.heq, states.equalized(4))):
        d = oracle.flat(end)
        change = 0.5 * float(oracle.a @ d**2)
        assert part.loss_change == pytest.approx(change, rel=1e-9)
        spread = change * np.linspace(0, 2, 5).std(ddof=1)
        assert part.loss_change_stderr == pytest.approx(spread / 5**0.5, rel=1e-9)
        assert part.distance == pytest.approx(np.linalg.norm(d), rel=1e-9)
        assert part.ratio == pytest.approx(change / np.linalg.norm(d), rel=1e-9)

        # Noise of variance D_l² / N_l in each layer: the mean change is 1/2 sum of that times tr.
        layers = np.array([np.linalg.norm(x) for x in np.split(d, np.cumsum(sizes)[:-1])])
        expected = 0.5 * float(layers**2 / sizes @ traces)
        changes = part.random_loss_changes
        assert abs(changes.mean() - expected) < 4 * changes.std() / 300**0.5
        squares = part.random_distances**2
        assert abs(squares.mean() - d @ d) < 4 * squares.std() / 300**0.5

        line = next(line for line in study.lines if line.name == part.name)
        np.testing.assert_allclose(line.losses, 0.25 + change * line.t**2, rtol=1e-5)
        curvature = next(found for found in study.curvatures if found.name == part.name)
        np.testing.assert_allclose(curvature.t, [0, 0.5, 1])
        top = np.sort(oracle.a)[:-4:-1]
        np.testing.assert_allclose(curvature.eigenvalues, [top] * 3, rtol=1e-4)
        np.testing.assert_allclose(curvature.trace, oracle.a.sum(), rtol=1e-9)
        np.testing.assert_allclose(curvature.trace_stderr, 0, atol=1e-9)
        np.testing.assert_allclose(curvature.along, 2 * change / (d @ d), rtol=1e-9)
        np.testing.assert_allclose(curvature.matched, 2 * expected / (d @ d), rtol=1e-9)
    assert study.distance_ratio == study.soft.distance / study.heq.distance

    plane = study.plane
    assert plane is not None
    to_soft, to_heq = oracle.flat(states.soft), oracle.flat(states.equalized(4))
    first = to_soft / np.linalg.norm(to_soft)
    second = to_heq - (to_heq @ first) * first
    second /= np.linalg.norm(second)
    assert plane.soft == pytest.approx((np.linalg.norm(to_soft), 0))
    assert plane.heq == pytest.approx((to_heq @ first, to_heq @ second))
    for row, y in enumerate(plane.y):
        for column, x in enumerate(plane.x):
            loss = 0.25 + 0.5 * float(oracle.a @ (x * first + y * second) ** 2)
            assert plane.losses[row, column] == pytest.approx(loss, rel=1e-5)
    for axis, places in ((plane.x, (0, plane.soft[0])), (plane.y, (0, plane.heq[1]))):
        assert axis[0] < min(places) < max(places) < axis[-1]


def comparison(ratio: float, ratios: list[float]) -> Comparison:
    random = np.array(ratios)
    return Comparison("x", 2 * ratio, 0.1, 2.0, {"w": 2.0}, 4 * random, np.full(len(ratios), 4.0))


def test_p_and_z() -> None:
    found = comparison(3.0, [1.0, 2.0, 3.0, 4.0])
    assert found.p == (3 + 1) / (4 + 1)  # an equal one is at least as flat
    assert comparison(0.5, [1.0, 2.0, 3.0, 4.0]).p == 1 / 5
    assert comparison(9.0, [1.0, 2.0, 3.0, 4.0]).p == 1
    assert found.random_mean == 2.5
    spread = np.std([1, 2, 3, 4], ddof=1)
    assert found.random_spread == pytest.approx(spread)
    assert found.z == pytest.approx(0.5 / spread)
    assert found.random_mean_stderr == pytest.approx(spread / 2)


def test_standard_error_of_z_by_simulation() -> None:
    rng = np.random.default_rng(3)
    found = [comparison(-2.0, rng.standard_normal(50).tolist()) for _ in range(2000)]
    expected = np.mean([one.z_stderr for one in found])
    assert np.std([one.z for one in found]) == pytest.approx(expected, rel=0.1)


def test_perturbations_have_the_distances_of_their_layers() -> None:
    origin = {"a": torch.ones(50, 40), "b": torch.zeros(300), "c": torch.zeros(3, 3)}
    names = tuple(origin)
    wanted = np.array([2.0, 0.1, 0.0])
    found = [perturb(origin, names, wanted, (0, draw)) for draw in range(40)]
    squares = np.mean([distances(origin, state, names) ** 2 for state in found], axis=0)
    np.testing.assert_allclose(squares, wanted**2, rtol=0.03)
    assert found[0]["c"] is origin["c"]
    noise = torch.stack([state["a"] - 1 for state in found]).flatten()
    assert noise.mean() == pytest.approx(0, abs=4 * 2.0 / 2000**0.5 / 80_000**0.5)
    again = perturb(origin, names, wanted, (0, 1))
    assert torch.equal(again["a"], found[1]["a"])
    assert not torch.equal(found[0]["a"], found[1]["a"])


def test_states_between() -> None:
    origin = {"w": torch.tensor([1.0, 2.0]), "running_var": torch.tensor([1.0, 4.0])}
    other = {"w": torch.tensor([3.0, 2.0]), "running_var": torch.tensor([4.0, 1.0])}
    origin["count"], other["count"] = torch.tensor(5), torch.tensor(9)
    half = combine(origin, [(0.5, other)])
    assert half["w"].tolist() == [2.0, 2.0]
    assert half["running_var"].tolist() == pytest.approx([2.0, 2.0])
    assert half["count"] == 5
    far = combine(origin, [(-3.0, other)])
    assert (far["running_var"] > 0).all()
    end = combine(origin, [(0.0, origin), (1.0, other)])
    assert end["w"].tolist() == [3.0, 2.0]
    assert end["running_var"].tolist() == pytest.approx([4.0, 1.0])


def test_loss_is_that_of_the_evaluation(states: RunStates) -> None:
    data = tiny_digits()
    landscape = Landscape(states.model, data, data.test)
    found = landscape.losses(states.soft)
    assert found.shape == (60,)
    states.model.load_state_dict(states.soft)
    assert landscape.loss(states.soft) == pytest.approx(
        evaluate(states.model, data, data.test)[0], rel=1e-5
    )
    assert landscape.loss(states.pretrained) != landscape.loss(states.soft)


def test_reestimated_statistics_are_those_of_the_training_images(states: RunStates) -> None:
    data = tiny_digits()
    landscape = Landscape(states.model, data, data.test, calibration=data.train)
    found = landscape.loss(states.soft)
    state = landscape.model.state_dict()
    x = torch.nn.functional.conv2d(
        data.normalize(data.train.pixels), states.soft["conv1.weight"], padding=1
    )
    torch.testing.assert_close(state["bn1.running_mean"], x.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state["bn1.running_var"], x.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    # Statistics in the state are of no concern then.
    buffers = {n: v for n, v in states.pretrained.items() if n not in landscape.names}
    assert landscape.loss({**states.soft, **buffers}) == found


def test_chosen_images() -> None:
    data = tiny_digits()
    chosen = choose_images(data.train, 50, seed=1)
    assert len(chosen) == 50
    rows = {tuple(row) for row in data.train.pixels.flatten(1).tolist()}
    assert {tuple(row) for row in chosen.pixels.flatten(1).tolist()} <= rows
    assert torch.equal(choose_images(data.train, 50, seed=1).pixels, chosen.pixels)
    assert not torch.equal(choose_images(data.train, 50, seed=2).pixels, chosen.pixels)
    for count in (None, 160, 999):
        assert choose_images(data.train, count, seed=1) is data.train


def test_states_of_a_run(run: Path, states: RunStates) -> None:
    assert set(states.coupled) == set(coupled_weights(states.pretrained))
    equalized = states.equalized(3)
    for name, value in states.pretrained.items():
        if name in states.coupled:
            expected = histogram_equalize(value, 3).weights(value.shape)
            assert torch.equal(equalized[name], expected)
            assert equalized[name].unique().numel() == 8
        else:
            assert equalized[name] is value
    assert states.digest() == read_states(run).digest()
    states.soft["linear.bias"][0] += 1
    assert states.digest() != read_states(run).digest()


def test_folder_that_is_no_finished_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    message = r"not the folder of a finished run: without pretrained\.safetensors, soft\.safe"
    with pytest.raises(ValueError, match=message):
        read_states(tmp_path)


def test_a_network_that_has_not_moved(states: RunStates) -> None:
    states.soft.update(states.pretrained)
    with pytest.raises(ValueError, match="the network 'soft' is where the pretrained one is"):
        Survey(states, FlatnessOptions(**SMALL), CPU)


def test_networks_on_one_line_span_no_plane(states: RunStates) -> None:
    states.soft.update(combine(states.pretrained, [(2.0, states.equalized(4))]))
    with pytest.raises(ValueError, match="all three networks are on one line"):
        Survey(states, FlatnessOptions(**SMALL), CPU)
    Survey(states, FlatnessOptions(**{**SMALL, "plane": 0}), CPU)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("draws", 1, "draws: got 1, expected at least 2"),
        ("line", -1, "line: got -1, expected at least 0"),
        ("half", "both", "half: got 'both', expected train or test"),
        ("normalization", "none", "normalization: got 'none', expected keep or reestimate"),
    ],
)
def test_options_out_of_range(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlatnessOptions(**{option: value})  # type: ignore[arg-type]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The run without anything measured."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("normalization", ["keep", "reestimate"])
def test_an_interrupted_study_goes_on(
    copied: Path,
    study_of: Callable[[str], FlatnessStudy],
    monkeypatch: pytest.MonkeyPatch,
    normalization: str,
) -> None:
    whole = study_of(normalization)
    options = whole.options
    measured = []
    losses = Landscape.losses

    def counted(self: Landscape, state: State) -> np.ndarray:
        measured.append(1)
        if len(measured) == 9:
            raise KeyboardInterrupt
        return losses(self, state)

    monkeypatch.setattr(Landscape, "losses", counted)
    with pytest.raises(KeyboardInterrupt):
        study_flatness(read_states(copied), options)
    told: list[tuple[int, int]] = []
    resumed = study_flatness(
        read_states(copied), options, progress=lambda *counts: told.append(counts)
    )
    # 1 pretrained, 2 for each of two ends, 3 draws, 4 points on a line, 3 × 3 on the plane; one
    # that was interrupted.
    assert len(measured) == 1 + 2 * 2 + 2 * 3 + 2 * 4 + 9 + 1
    assert told[0][0] == 0
    assert told[-1] == (len(told) - 1, len(told) - 1)
    assert content_of(resumed, copied) == content_of(whole, copied)

    before = len(measured)
    extended = study_flatness(read_states(copied), replace(options, draws=5))
    assert len(measured) == before + 2 * 2
    np.testing.assert_array_equal(extended.soft.random_distances[:3], whole.soft.random_distances)


def content_of(study: FlatnessStudy, folder: Path) -> dict[str, Any]:
    content = json.loads(save_result(study, folder / "study.json").read_text())
    del content["run"]
    return content


def test_policies_differ(run: Path) -> None:
    options = {**SMALL, "line": 0, "plane": 0, "curvatures": 0}
    kept = study_flatness(read_states(run), FlatnessOptions(**options))
    anew = FlatnessOptions(**options, normalization="reestimate")
    reestimated = study_flatness(read_states(run), anew)
    assert kept.soft.distance == reestimated.soft.distance
    assert kept.soft.loss_change != reestimated.soft.loss_change
    assert (kept.lines, kept.plane, kept.curvatures) == ((), None, ())


def test_saved_and_drawn(study_of: Callable[[str], FlatnessStudy], tmp_path: Path) -> None:
    study = study_of("keep")
    read = load_result(FlatnessStudy, save_result(study, tmp_path / "flatness.json"))
    assert read.options == study.options
    assert read.soft.p == study.soft.p
    assert read.mean_ratio == study.mean_ratio
    for draw in (figures.draw_flatness, figures.draw_landscape, figures.draw_curvature):
        for file in save_figure(draw(read), tmp_path / "figure"):
            assert file.stat().st_size > 8_000
    bare = FlatnessStudy(**{**vars(study), "lines": (), "plane": None, "curvatures": ()})
    for draw in (figures.draw_landscape, figures.draw_curvature):
        with pytest.raises(ValueError, match="the study has n"):
            draw(bare)
    no_plane = FlatnessStudy(**{**vars(study), "plane": None})
    assert len(figures.draw_landscape(no_plane).axes) == 1


def test_command(copied: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    result = CliRunner().invoke(flatness, [str(copied), *flags, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "HEQ-4" in result.output
    assert "40 train images" in result.output
    written = {path.name for path in (copied / "flatness").iterdir()}
    stems = ("flatness", "landscape", "curvature")
    wanted = {f"{stem}.{end}" for stem in stems for end in ("png", "pdf")} | {"flatness.json"}
    assert {name for name in written if not name.startswith("values-")} == wanted


@pytest.mark.usefixtures("undrawn")
def test_command_as_json(copied: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    result = CliRunner().invoke(flatness, [str(copied), *flags, "--device", "cpu", "--json"])
    study = load_result(FlatnessStudy, copied / "flatness" / "flatness.json")
    content = json.loads(result.stdout)
    assert content["networks"][0]["p"] == study.soft.p
    assert content["networks"][1]["ratio"] == study.heq.ratio
    assert content["distance_ratio"] == study.distance_ratio


def test_command_tells_how_to_go_on(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Landscape, "losses", interrupt)
    result = CliRunner().invoke(flatness, [str(copied), "--device", "cpu"])
    assert result.exit_code != 0
    assert f"resume with: pysoftq flatness {copied} (same options)" in result.stderr
