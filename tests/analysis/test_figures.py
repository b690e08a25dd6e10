from __future__ import annotations

import importlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import cbook
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from run_folders import metrics, records, write_run

from pysoftq.analysis import figures
from pysoftq.analysis.dynamics import LossCurves, WeightRecords, read_losses, read_run
from pysoftq.analysis.figures.front import draw_front
from pysoftq.analysis.figures.potentials import draw_potentials
from pysoftq.analysis.figures.run import merged_clusters
from pysoftq.analysis.figures.style import BLACK, BLUE, VERMILLION, plain
from pysoftq.run.front import Front, FrontRung
from pysoftq.run.networks import NetworkRow

MODULES = (
    "comparison",
    "dynamics",
    "flatness",
    "front",
    "meanfield",
    "phase",
    "potentials",
    "run",
    "scaling",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), records(), metrics())


@pytest.fixture(scope="module")
def weights(folder: Path) -> WeightRecords:
    return read_run(folder).records


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[Path, bytes]:
    """The files of a drawing."""
    before = dict(mpl.rcParams)
    files = {path: path.read_bytes() for path in figures.draw_run(folder)}
    assert dict(mpl.rcParams) == before
    return files


def test_draw_run_writes_png_and_pdf(folder: Path, drawn: dict[Path, bytes]) -> None:
    names = ("histograms", "trajectories", "losses")
    wanted = [folder / "figures" / f"{name}{end}" for name in names for end in (".png", ".pdf")]
    assert list(drawn) == wanted
    for path, content in drawn.items():
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            continue
        with Image.open(BytesIO(content)) as image:
            # Neither axis labels nor legends may spill over the page: its border is blank.
            pixels = np.asarray(image.convert("L"))
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert border.min() == 255
        assert pixels.min() < 100


def test_the_forces_of_both_potentials(tmp_path: Path) -> None:
    theta = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)) ** 3
    for path in figures.save_figure(draw_potentials("conv$1", theta, 0.5), tmp_path / "potentials"):
        assert path.stat().st_size > 10_000


USER_SETTINGS = {
    "text.usetex": True,
    "font.size": 40,
    "savefig.bbox": "tight",
    "figure.facecolor": "black",
    "axes.formatter.use_locale": True,
}


def test_settings_of_the_user_change_no_byte_of_another_drawing(
    folder: Path, drawn: dict[Path, bytes]
) -> None:
    with mpl.rc_context(USER_SETTINGS):
        assert {path: path.read_bytes() for path in figures.draw_run(folder)} == drawn
        assert mpl.rcParams["text.usetex"]


@pytest.mark.parametrize("module", MODULES)
def test_every_drawing_is_isolated(module: str) -> None:
    found = importlib.import_module(f"pysoftq.analysis.figures.{module}")
    drawings = {
        name: function
        for name, function in vars(found).items()
        if name.startswith(("draw_", "animate")) and name != "draw_run"
    }
    assert drawings
    assert all(hasattr(function, "__wrapped__") for function in drawings.values())


def test_a_figure_is_whole_or_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        figures.save_figure(Figure(), folder / "new" / "figure")
    assert list((folder / "new").iterdir()) == []


def test_clusters_that_were_merged() -> None:
    indices = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    counts = np.array([3, 2, 1, 2])
    kept = merged_clusters(indices, counts, np.array([7, 7, 7, 8, 8, 8, 9, 9.0]))
    assert kept.tolist() == [False, False, True, False]
    # Values are trained, and a weight has moved.
    moved = merged_clusters(indices, counts, np.array([7, 7, 8, 7, 7, 7, 9, 9.0]))
    assert moved.tolist() == [False, True, True, False]


def test_draw_run_of_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"records.npz"):
        figures.draw_run(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_potential_over_the_second_histogram(weights: WeightRecords) -> None:
    figure = figures.draw_histograms(weights)
    twin = next(axis for axis in figure.axes if "V_" in axis.get_ylabel())
    x, v = twin.lines[0].get_data()
    assert to_hex(twin.lines[0].get_color()) == BLACK
    # Eq. 5 on some midpoints, weight by weight; a bin's width is how far the weights may sit off.
    some = np.linspace(0, len(x) - 1, 200).astype(int)
    theta = weights.weights_early.astype(np.float64)
    wells = np.minimum(np.abs(x[some, None] - theta) - weights.width, 0)
    np.testing.assert_allclose(v[some], wells.sum(axis=1), atol=theta.size * (x[1] - x[0]))
    assert v.min() < -10 * theta.size * (x[1] - x[0])


def test_clusters_that_refinement_moves_are_marked(weights: WeightRecords) -> None:
    soft = np.repeat(np.array([-1.0, -0.5, 0.1, 1.0], np.float32), [3, 40, 50, 2])
    final = np.repeat(np.array([-0.5, -0.5, 0.1, 0.1], np.float32), [3, 40, 50, 2])
    changed = {"weights_pretrained": soft, "weights_early": soft, "weights_soft": soft}
    shown = WeightRecords(**{**vars(weights), **changed, "weights_final": final})
    axis = figures.draw_histograms(shown).axes[2]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    kept, moved = drawn["clusters kept"], drawn["merged by refinement"]
    assert kept == [pytest.approx([-0.5, 40]), pytest.approx([0.1, 50])]
    assert moved == [pytest.approx([-1.0, 3]), pytest.approx([1.0, 2])]
    colours = {to_hex(line.get_color()) for line in axis.lines}
    assert len(colours) == 2
    assert axis.get_yscale() == "log"


def test_legend_names_only_what_is_there(weights: WeightRecords) -> None:
    soft = np.repeat(np.array([-1.0, 0.5], np.float32), [30, 40])
    stages = ("weights_pretrained", "weights_early", "weights_soft", "weights_final")
    shown = WeightRecords(**{**vars(weights), **dict.fromkeys(stages, soft)})
    texts = figures.draw_histograms(shown).axes[2].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["clusters kept"]


@pytest.mark.parametrize(
    "stage",
    [np.full(5, 0.25, np.float32), np.array([0.5], np.float32)],
    ids=["constant", "one weight"],
)
def test_a_layer_at_one_point_can_be_drawn(
    weights: WeightRecords, tmp_path: Path, stage: np.ndarray
) -> None:
    stages = ("weights_pretrained", "weights_early", "weights_soft", "weights_final")
    shown = WeightRecords(**{**vars(weights), **dict.fromkeys(stages, stage)})
    for path in figures.save_figure(figures.draw_histograms(shown), tmp_path / "figure"):
        assert path.stat().st_size > 1000


def test_trajectories_are_drawn_whole_and_coloured_by_their_end(weights: WeightRecords) -> None:
    ends = np.array([0.0, 0.001, 1.0, 1.0], np.float32)
    paths = np.linspace([0.4, 0.5, 0.6, 0.7], ends, 5).astype(np.float32)
    steps = np.array([0, 10, 20, 30, 40])
    shown = WeightRecords(**{**vars(weights), "trajectories": paths, "trajectory_steps": steps})
    axis = figures.draw_trajectories(shown).axes[0]
    np.testing.assert_array_equal([line.get_ydata() for line in axis.lines], paths.T)
    colours = [line.get_color() for line in axis.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert axis.get_xlim() == (0, 40)


def test_trajectories_of_a_single_step(weights: WeightRecords, tmp_path: Path) -> None:
    changed = {
        "trajectories": weights.trajectories[:1],
        "trajectory_steps": weights.trajectory_steps[:1],
    }
    figure = figures.draw_trajectories(WeightRecords(**{**vars(weights), **changed}))
    assert all(path.is_file() for path in figures.save_figure(figure, tmp_path / "figure"))


def test_losses_on_twin_axes(folder: Path) -> None:
    losses: LossCurves = read_losses(folder / "metrics.jsonl")
    left, right = figures.draw_losses(losses).axes
    np.testing.assert_array_equal(left.lines[0].get_data(), (losses.epochs, losses.coupling))
    np.testing.assert_array_equal(right.lines[0].get_data(), (losses.epochs, losses.task))
    for axis, colour in ((left, BLUE), (right, VERMILLION)):
        assert axis.lines[0].get_color() == axis.yaxis.label.get_color() == colour


@pytest.mark.parametrize("name", ["a$_{$b", "$x$", "cost_$", "_$_$"])
def test_dollars_in_names_are_no_formulas(
    weights: WeightRecords, name: str, tmp_path: Path
) -> None:
    named = replace(weights, layer=name, trajectory_layer=name)
    for draw in (figures.draw_histograms, figures.draw_trajectories):
        figure = draw(named)
        figure.draw_without_rendering()  # a formula that is none fails here
    assert not cbook.is_math_text(plain(name))


def test_names_with_an_underscore_are_in_the_legend() -> None:
    axis = Figure().subplots()
    axis.plot([1, 2], label=plain("_conv"))
    assert [text.get_text() for text in axis.legend().get_texts()] == [" _conv"]


def test_a_front_is_drawn_in_its_range() -> None:
    """Baselines beyond it are at its edge, with their values."""
    made = [
        FrontRung(f"front/{size}.safetensors", size, size, size, 2.0, 0.9 + n / 100, 0.9 + n / 50)
        for n, size in enumerate((9000, 8000, 7000))
    ]
    front = Front("classification", (9000, 8000, 7000), 0.95, tuple(made), 0.95, 1)
    rows = [
        NetworkRow("pretrained", 0.95, None, None, None, 80_000, 0.1),
        NetworkRow("HEQ-3", 0.93, 3.0, 4.0, 3.0, 9_500, 0.2),
        NetworkRow("HEQ-2", 0.30, 2.0, 2.0, 2.0, 7_500, 2.0),
    ]
    (axis,) = draw_front(front, rows).axes
    low, high = axis.get_ylim()
    assert low > 80
    assert high < 100
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["HEQ-3", "HEQ-2\n30.00 %"]
    lines = {line.get_label(): line for line in axis.lines}
    assert lines["test"].get_ydata() == pytest.approx([90, 92, 94])
    assert lines["validation"].get_xdata() == pytest.approx([9, 8, 7])
    assert lines["compressed file of the run"].get_xdata() == pytest.approx([8])
