"""The comparison: its networks against what their files hold, resuming, fronts, table, figure."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_digits, tiny_training
from torch.optim.swa_utils import update_bn

from pysoftq.analysis import contest
from pysoftq.analysis.comparison import ComparisonStudy, Point, Record, front, summarize
from pysoftq.analysis.contest import list_entries, study_comparison
from pysoftq.analysis.figures import save_figure
from pysoftq.analysis.figures.comparison import draw_comparison
from pysoftq.analysis.options import ComparisonOptions
from pysoftq.analysis.phase import Statistic
from pysoftq.analysis.results import load_result, save_result
from pysoftq.baselines import ecvq
from pysoftq.cli.compare import compare, markdown
from pysoftq.data.images import Dataset
from pysoftq.errors import ConfigError
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import cpu_state, load_weights, save_state
from pysoftq.run.config import CompressConfig, make_config, read_config
from pysoftq.run.evaluation import evaluate
from pysoftq.run.observer import Silent
from pysoftq.run.parq import has_parq

OPTIONS: dict[str, Any] = {
    "model": "digits-resnet-small",
    "recipe": "best",
    "epochs": 2,
    "codebook_epochs": 1,
    "batch_size": 40,
    "lr": 0.01,
    "split_seed": 0,
    "bins": 256,
    "threads": 1,
}
SMALL = ComparisonOptions(
    methods=("uniform", "kmeans", "ecvq", "kmeans+ft", "uncoupled", "soft"),
    seeds=2,
    h=(0.2,),
    w=(0.5,),
    recipes=("paper", "best"),
    rd_weights=(0.02,),
    levels=(4,),
    ecvq_rd_weights=(0.1,),
)


class Log(Silent):
    """Keeps the records; may stop the comparison after some of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.records: list[Record] = []
        self.left: list[float | None] = []
        self.stop_after = stop_after

    def on_record(self, record: Record, progress: contest.Progress) -> None:
        self.records.append(record)
        self.left.append(progress.seconds_left)
        if len(self.records) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Any:
    """The comparison and its runs take the tiny digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "read_data", lambda config: tiny_digits())
        patch.setattr("pysoftq.sweep.prepare.read_data", lambda config: tiny_digits())
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that has learnt a little."""
    training = tiny_training(make_config(OPTIONS))
    data = tiny_digits()
    training.model.train()
    for epoch in range(12):
        for images, labels in data.batches(0, epoch, 40, augment=False):
            training.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(training.model(images), labels).backward()
            training.optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_state(cpu_state(training.model), path)
    return path


@pytest.fixture(scope="module")
def config(weights: Path) -> CompressConfig:
    return make_config({**OPTIONS, "weights": weights})


@pytest.fixture(scope="module")
def folder(config: CompressConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole comparison."""
    path = tmp_path_factory.mktemp("whole")
    study_comparison(config, SMALL, path, Log())
    return path


def networks(folder: Path) -> dict[str, Path]:
    return {f"{path.parts[-3]}/{path.stem}": path for path in folder.rglob("networks/*")}


def refuse(*arguments: object) -> dict[str, Any]:
    raise AssertionError("made again")


# ----------------------------------------------------------------------- what is made and measured


def test_records_are_what_the_files_hold(config: CompressConfig, folder: Path) -> None:
    study = study_comparison(config, SMALL, folder, Log())
    data, model = tiny_digits(), build_model(config.model, 10, 1)
    files = networks(folder)
    untrained = {f"seed-0/{name}" for name in ("uniform-K4", "kmeans-K4", "ecvq-rd_weight0.1")}
    trained = {
        f"seed-{seed}/{name}"
        for seed in (0, 1)
        for name in (
            *("kmeans+ft-K4", "uncoupled-rd_weight0.02"),
            *("soft-h0.2-w0.5-paper", "soft-h0.2-w0.5-best-rd_weight0.02"),
        )
    }
    assert set(files) == untrained | trained
    for point in study.points:
        words = [f"{name}{value}" for name, value in point.parameters.items()]
        stem = "-".join([point.method, *words]).replace("-recipe", "-")
        own = [path for name, path in files.items() if name.endswith(f"/{stem}")]
        accuracies, bits, entropies = [], [], []
        for path in own:
            contest.load_compressed(path, model)
            accuracies.append(100 * evaluate(model, data, data.test)[1])
            parts = [p.detach().flatten() for p in model.parameters() if p.dim() > 1]
            counts = [np.unique(part.numpy(), return_counts=True)[1] for part in parts]
            total = sum(part.numel() for part in parts)
            bits.append(sum(c.sum() * math.log2(len(c)) for c in counts) / total)
            entropies.append(-sum((c * np.log2(c / c.sum())).sum() for c in counts) / total)
        assert point.accuracy.mean == pytest.approx(np.mean(accuracies))
        assert point.bits.mean == pytest.approx(np.mean(bits))
        assert point.entropy_bits.mean == pytest.approx(np.mean(entropies))
        sizes = [path.stat().st_size / 1000 for path in own]
        assert point.kilobytes.mean == pytest.approx(np.mean(sizes))
    assert study.pretrained.mean > 50
    assert [point.bits.spread is None for point in study.of("kmeans")] == [True]


def test_small_layers_are_quantized_more_finely(folder: Path, config: CompressConfig) -> None:
    model = build_model(config.model, 10, 1)
    theirs = contest.load_weights(config.weights)  # type: ignore[arg-type]
    contest.load_compressed(networks(folder)["seed-0/ecvq-rd_weight0.1"], model)
    layers = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    sizes = np.array([p.numel() for p in layers.values()])
    for name, weight in layers.items():
        rate = 0.1 * weight.numel() * sizes.sum() / np.square(sizes).sum()
        expected = ecvq(theirs[name], 64, rate)
        assert torch.equal(expected.weights(weight.shape), weight)


def test_training_keeps_the_clusters_and_helps(folder: Path, config: CompressConfig) -> None:
    before, after = build_model(config.model, 10, 1), build_model(config.model, 10, 1)
    contest.load_compressed(networks(folder)["seed-0/kmeans-K4"], before)
    contest.load_compressed(networks(folder)["seed-0/kmeans+ft-K4"], after)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if old.dim() > 1:
            pairs = torch.stack([old.detach().flatten(), new.detach().flatten()])
            assert pairs.unique(dim=1).shape[1] == 4, name
            assert not torch.equal(old, new)
    data = tiny_digits()
    assert evaluate(after, data, data.train)[0] < evaluate(before, data, data.train)[0]


def test_all_that_are_trained_see_as_many_epochs(config: CompressConfig, tmp_path: Path) -> None:
    methods = ("kmeans+ft", *(("parq",) if has_parq() else ()), "uncoupled", "soft")
    options = ComparisonOptions(
        **{
            **vars(SMALL),
            "methods": methods,
            "seeds": 1,
            "baseline_bits": (2,),
            "recipes": ("best",),
        }
    )
    epochs: list[int] = []

    class Counting(Log):
        def on_record(self, record: Record, progress: contest.Progress) -> None:
            assert len(epochs) == 3, record.method
            epochs.clear()

    def counted(self: Dataset, seed: int, epoch: int, batch_size: int, **options: Any) -> Any:
        epochs.append(epoch)
        return batches(self, seed, epoch, batch_size, **options)

    batches = Dataset.batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "batches", counted)
        study = study_comparison(config, options, tmp_path, Counting())
    assert study.epochs == 3
    assert len(study.points) == len(methods)


def test_without_coupling_the_recipe_is_the_same(config: CompressConfig, folder: Path) -> None:
    (run,) = (folder / "seed-0" / "runs").glob("h0.0-*")
    assert make_config(read_config(run / "config.yaml")).h == 0
    coupled = load_weights(folder / "seed-0" / "runs" / "h0.2-w0.5" / "soft.safetensors")
    free = load_weights(run / "soft.safetensors")
    assert not torch.equal(coupled["linear.weight"], free["linear.weight"])
    study = study_comparison(config, SMALL, folder, Log())
    (point,) = study.of("uncoupled")
    assert point.bits.mean < 7
    assert point not in study.baselines


def test_re_estimated_statistics(folder: Path, config: CompressConfig) -> None:
    """Measured on the networks that are there; none is made anew."""
    options = ComparisonOptions(**{**vars(SMALL), "normalization": "reestimate"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest.Arena, "_make", refuse)
        study = study_comparison(config, options, folder, Log())
    data, model = tiny_digits(), build_model(config.model, 10, 1)
    contest.load_compressed(networks(folder)["seed-0/kmeans-K4"], model)
    update_bn((batch for batch, _ in data.ordered(data.train)), model)
    (point,) = study.of("kmeans")
    assert point.accuracy.mean == pytest.approx(100 * evaluate(model, data, data.test)[1])
    assert study.normalization == "reestimate"


def test_an_interrupted_comparison_goes_on(
    config: CompressConfig, folder: Path, tmp_path: Path
) -> None:
    whole = study_comparison(config, SMALL, folder, Log())
    seen: list[Record] = []
    for stop_after in (2, 4):
        log = Log(stop_after)
        with pytest.raises(KeyboardInterrupt):
            study_comparison(config, SMALL, tmp_path, log)
        seen += log.records
    rest = Log()
    study = study_comparison(config, SMALL, tmp_path, rest)
    names = [(record.seed, record.method, record.setting) for record in seen + rest.records]
    assert len(names) == len(set(names)) == 11
    assert study.points == whole.points
    assert rest.left[-1] == 0.0


def test_more_seeds_cost_only_what_is_new(config: CompressConfig, folder: Path) -> None:
    log = Log()
    options = ComparisonOptions(**{**vars(SMALL), "seeds": 3, "methods": ("kmeans", "kmeans+ft")})
    study = study_comparison(config, options, folder, log)
    assert [(record.seed, record.method) for record in log.records] == [(2, "kmeans+ft")]
    assert study.seeds == (0, 1, 2)


def test_other_options_are_refused(config: CompressConfig, folder: Path) -> None:
    for name, value in (("epochs", 3), ("n_min", 5), ("bits", 6)):
        other = config.model_copy(update={name: value})
        with pytest.raises(ConfigError, match=f"begun with other options: {name}"):
            study_comparison(other, SMALL, folder, Log())


def test_a_refused_comparison_may_be_corrected(config: CompressConfig, tmp_path: Path) -> None:
    options = ComparisonOptions(methods=("kmeans",), seeds=1, levels=(4,))
    wrong = config.model_copy(update={"weights": tmp_path / "nothing.pt"})
    with pytest.raises((ConfigError, FileNotFoundError)):
        study_comparison(wrong, options, tmp_path / "out", Log())
    assert study_comparison(config, options, tmp_path / "out", Log()).points
    with pytest.raises(ConfigError, match="begun with other options: weights"):
        study_comparison(wrong, options, tmp_path / "out", Log())


def test_only_whole_layers_are_compared(config: CompressConfig, tmp_path: Path) -> None:
    other = config.model_copy(update={"granularity": "channel"})
    with pytest.raises(ConfigError, match="layers are compared, got 'channel'"):
        study_comparison(other, SMALL, tmp_path / "out", Log())
    assert not (tmp_path / "out").exists()


def test_a_finished_run_takes_part(config: CompressConfig, folder: Path, tmp_path: Path) -> None:
    run = folder / "seed-1" / "runs" / "h0.2-w0.5"
    chosen = {"methods": ("kmeans",), "runs": (run,)}
    options = ComparisonOptions(**{**vars(SMALL), **chosen})
    whole = study_comparison(config, SMALL, folder, Log())
    study = study_comparison(config, options, tmp_path, Log())
    theirs = {point.setting: point.accuracy for point in whole.of("soft")}
    assert {point.setting for point in study.of("soft")} == set(theirs)
    lines = next(tmp_path.glob("*.jsonl")).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [row["key"] for row in records[1:] if "soft" in row["key"]] == [
        "1/soft-h0.2-w0.5-paper",
        "1/soft-h0.2-w0.5-best-rd_weight0.02",
    ]


def test_runs_that_cannot_take_part(config: CompressConfig, folder: Path, tmp_path: Path) -> None:
    run = folder / "seed-0" / "runs" / "h0.2-w0.5"
    training = tiny_training(config)
    save_state(cpu_state(training.model), tmp_path / "other.safetensors")
    other = config.model_copy(update={"weights": tmp_path / "other.safetensors"})
    options = ComparisonOptions(methods=(), seeds=1, runs=(run,))
    with pytest.raises(ConfigError, match="began with other weights"):
        study_comparison(other, options, tmp_path / "a", Log())
    options = ComparisonOptions(methods=(), seeds=1, runs=(tmp_path,))
    with pytest.raises(ConfigError, match="not the folder of a finished run"):
        study_comparison(config, options, tmp_path / "b", Log())


def test_what_is_alike_for_all_seeds_comes_once(config: CompressConfig) -> None:
    def seeds(method: str, config: CompressConfig) -> list[int]:
        entries = list_entries(config, SMALL, without={})
        return [entry.seed for entry in entries if entry.method == method]

    own_split = config.model_copy(update={"split_seed": None})
    own_network = config.model_copy(update={"weights": None})
    assert seeds("kmeans", config) == [0]
    assert seeds("kmeans", own_split) == seeds("kmeans", own_network) == [0, 1]
    assert seeds("soft", config) == [0, 0, 1, 1]


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'; expected one of uniform, minmax"):
        ComparisonOptions(methods=("magic",))
    with pytest.raises(ValueError, match="unknown recipe 'soup'; expected one of unrefined, paper"):
        ComparisonOptions(recipes=("soup",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seeds is 0; expected 1 or more"):
        ComparisonOptions(seeds=0)
    with pytest.raises(ValueError, match="normalization is 'new'; expected keep or reestimate"):
        ComparisonOptions(normalization="new")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- what comes of it


def record(method: str, accuracy: float, bits: float, seed: int = 0, **values: Any) -> Record:
    values = values or {"K": 4}
    return Record(method, values, seed, accuracy, bits, bits - 0.5, int(1000 * bits), 1.0)


def made_up(points: Sequence[tuple[str, float, float]]) -> ComparisonStudy:
    """A study of points (method, accuracy in per cent, bits)."""
    records = [
        record(method, accuracy / 100, bits, K=number)
        for number, (method, accuracy, bits) in enumerate(points)
    ]
    statistic = Statistic(99.0, None, None)
    points_ = summarize(records)
    return ComparisonStudy("made up", "keep", 3, (0,), statistic, points_, {"parq": "not there"})


def test_statistics_over_the_seeds() -> None:
    values = [(0.9, 3.0), (0.8, 3.5), (0.7, 4.0)]
    records = [record("soft", *pair, seed, w=0.5) for seed, pair in enumerate(values)]
    (point, other) = summarize([*records, record("kmeans", 0.5, 2.0)])[::-1]
    assert (point.method, other.method) == ("soft", "kmeans")
    assert point.accuracy.mean == pytest.approx(80)
    assert point.accuracy.spread == pytest.approx(10)
    assert point.bits.mean == pytest.approx(3.5)
    assert point.entropy_bits.mean == pytest.approx(3.0)
    assert point.kilobytes.mean == pytest.approx(3.5)
    assert other.accuracy.spread is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["kmeans", "soft"]), st.integers(0, 9), st.integers(1, 9)),
        min_size=1,
        max_size=12,
        unique=True,
    )
)
def test_front(points: list[tuple[str, int, int]]) -> None:
    study = made_up([(method, float(a), float(b)) for method, a, b in points])
    pairs = [(point.bits.mean, point.accuracy.mean) for point in study.points]
    found = [(point.bits.mean, point.accuracy.mean) for point in front(study.points, "bits")]
    kept = [
        (b, a)
        for b, a in pairs
        if not any(d <= b and c >= a and (d, c) != (b, a) for d, c in pairs)
    ]
    np.testing.assert_allclose(found, sorted(kept))
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(found))


def test_leads() -> None:
    study = made_up(
        [
            *(("kmeans", 60.0, 2.0), ("kmeans", 90.0, 4.0), ("ecvq", 85.0, 5.0)),
            *(("soft", 80.0, 3.0), ("soft", 88.0, 6.0), ("soft", 99.0, 1.0)),
        ]
    )
    leads = {point.bits.mean: study.lead(point, "bits") for point in study.of("soft")}
    assert leads == {1.0: None, 3.0: pytest.approx(5.0), 6.0: pytest.approx(-2.0)}
    entropy = {point.bits.mean: study.lead(point, "entropy_bits") for point in study.of("soft")}
    assert entropy == leads  # the same points, half a bit to the left
    (ours,) = study.of("ecvq")
    assert study.lead(ours, "bits") == pytest.approx(85 - 99)
    assert made_up([("soft", 80.0, 3.0)]).lead(study.of("soft")[0], "bits") is None


def test_the_ablation_leads_nobody_and_is_measured_like_soft() -> None:
    study = made_up([("kmeans", 60.0, 2.0), ("uncoupled", 90.0, 2.0), ("soft", 80.0, 2.0)])
    (kmeans, uncoupled, soft) = study.points
    assert study.lead(soft, "bits") == pytest.approx(20.0)
    assert study.lead(uncoupled, "bits") == pytest.approx(30.0)
    assert study.lead(kmeans, "bits") == pytest.approx(-20.0)


def test_a_study_is_read_back(tmp_path: Path) -> None:
    study = made_up([("kmeans", 60.0, 2.0), ("soft", 80.0, 3.0)])
    assert load_result(ComparisonStudy, save_result(study, tmp_path / "a.json")) == study


def test_table() -> None:
    text = markdown(made_up([("kmeans", 60.0, 2.0), ("soft", 80.0, 3.0), ("soft", 50.0, 3.5)]))
    lines = text.splitlines()
    assert lines[2].count("|") == lines[3].count("|") == 9
    assert lines[4] == "| kmeans | K = 0 | 60.00 | 2.00 | 1.50 | 2.0 |  |  |"
    assert lines[5] == "| soft | K = 1 | 80.00 | 3.00 | 2.50 | 3.0 | +20.00 | +20.00 |"
    assert lines[6] == "| soft | K = 2 | 50.00 | 3.50 | 3.00 | 3.5 | −10.00 | −10.00 |"
    assert lines[7] == "| parq | not there |  |  |  |  |  |  |"


def test_figure(tmp_path: Path) -> None:
    grid = [(m, 30 + 60 * (1 - 2.0**-b), b) for m in contest.METHODS for b in (1.0, 2.0, 4.0)]
    study = made_up(grid)
    figure = draw_comparison(study)
    left, right = figure.axes
    assert left.get_xlabel() != right.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) == len(contest.METHODS) + 3
    lines = {line.get_label(): line for line in left.lines}
    expected = [point.bits.mean for point in front(study.of("soft"), "bits")]
    assert list(lines["front of soft quantization"].get_xdata()) == expected
    png, _ = save_figure(figure, tmp_path / "figure")
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert border.min() == 255


def test_a_narrow_range_of_accuracies_has_ticks() -> None:
    figure = draw_comparison(made_up([("heq", 99.1, 2.0), ("soft", 99.2, 2.0)]))
    low, high = figure.axes[0].get_ylim()
    assert sum(low <= tick <= high for tick in figure.axes[0].get_yticks()) >= 3


# ------------------------------------------------------------------------------------ the command


def call(*arguments: object) -> Any:
    return CliRunner().invoke(compare, [str(argument) for argument in arguments])


def test_the_command(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "has_parq", lambda: False)
    (tmp_path / "options.yaml").write_text("epochs: 2\nmodel: digits-resnet-small\n")
    out = tmp_path / "out"
    chosen = ("--methods", "kmeans,parq", "--levels", "2,4", "--seeds", 1, "--threads", 1)
    given = (*chosen, "--config", tmp_path / "options.yaml", "--weights", weights, "--out", out)
    shown = call(*given)
    assert shown.exit_code == 0, shown.output
    assert "2 of 2  seed 0  kmeans (K = 4): " in shown.output
    assert "not installed: pip install 'pysoftq[parq]'" in shown.output
    names = {
        "config.yaml",
        "seed-0",
        *(f"comparison.{end}" for end in ("json", "md", "pdf", "png")),
    }
    assert names < {path.name for path in out.iterdir()}
    as_json = call(*given, "--json")
    content = json.loads(as_json.stdout)
    study = load_result(ComparisonStudy, out / "comparison.json")
    assert [point["accuracy"] for point in content["points"]] == [
        point.accuracy.mean for point in study.points
    ]
    assert content["skipped"] == study.skipped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "magic"), "unknown method 'magic'"),
        (("--levels", "2.5"), "option 'levels': expected whole numbers, got '2.5'"),
        (("--ecvq-rd-weights", "a"), "option 'ecvq_rd_weights': expected numbers"),
        (("--epochs", 0), "option 'epochs'"),
    ],
)
def test_wrong_options_of_the_command(
    arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    result = call(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_an_interrupt_tells_how_to_go_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contest.Arena, "_make", interrupt)
    result = call("--weights", weights, "--model", "digits-resnet-small", "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "interrupted; finished networks are kept" in result.output


def test_points_are_told_apart() -> None:
    (point,) = summarize([record("soft", 0.5, 3.0, h=0.1, w=0.5, recipe="paper")])
    assert isinstance(point, Point)
    assert point.setting == "h = 0.1, w = 0.5, paper"
