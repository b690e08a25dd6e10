from __future__ import annotations

import json
import math
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from forkserver import forkserver
from paths import ROOT
from scipy import stats

import pysoftq
from pysoftq import load_state_dict
from pysoftq.baselines import histogram_equalize
from pysoftq.run.networks import NetworkRow
from pysoftq.run.parq import has_parq

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import (
    __main__,
    coupling,
    digits,
    digits_granularity,
    digits_targets,
    force_step,
    growth,
    harness,
    library_text,
    memory,
    report,
    states,
    strengths,
    targets,
    variants,
)
from benchmarks.harness import Comparison, Measure, Options, Spread, Timing
from benchmarks.peers import histograms, pairs, table1

pytestmark = pytest.mark.long

TINY = Options(size="tiny")


@pytest.fixture(autouse=True)
def _small_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On one thread, and without what compiles at run time, which is skipped and says so."""

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("no working C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setitem(sys.modules, "pykeops", None)
    with harness.threads(1):
        yield


@pytest.mark.parametrize("bins", [50, 2**10, 2**14])
@pytest.mark.parametrize("width", [0.01, 0.5, 4.0, 12.0])
def test_table1_of_the_peers_follows_the_paper(bins: int, width: float) -> None:
    theta = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    wanted = pysoftq.force(theta, width, bins, method="fft")
    models = [states.Layers([torch.from_numpy(theta)]) for _ in range(2)]
    table1.torch_force_step(list(models[0].weights), [width], [0.25], bins)
    table1.fixed_grid_force_step(list(models[1].weights), [width], [0.25], bins)()
    gradient = np.zeros_like(theta)
    table1.numpy_force_step([theta], [gradient], [width], [0.25], bins)
    # The noise of float32 convolutions grows with the well's depth against the bin.
    noise = 1e-6 * theta.size * width / (np.ptp(theta) / bins)
    for added in (*(model.gradients()[0].numpy() for model in models), gradient):
        np.testing.assert_allclose(added / 0.25, wanted, atol=noise)


def test_peers_leave_a_constant_layer_alone() -> None:
    parameter = torch.nn.Parameter(torch.full((4, 4), 0.5))
    parameter.grad = torch.ones_like(parameter)
    table1.torch_force_step([parameter], [1.0], [1.0], 64)
    gradient = np.ones(16, np.float32)
    table1.numpy_force_step([np.full(16, 0.5, np.float32)], [gradient], [1.0], [1.0], 64)
    assert parameter.grad.eq(1).all()
    assert (gradient == 1).all()


@pytest.mark.parametrize("rows", [None, 7, 40])
def test_brute_force_and_bisection_against_the_oracle(
    monkeypatch: pytest.MonkeyPatch, rows: int | None
) -> None:
    monkeypatch.setitem(pairs.TILES, "cpu", (16, 30))  # tiles that do not fit the weights
    theta = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    theta[50:60] = theta[0]
    brute = pairs.BruteForce(torch.from_numpy(theta), 0.5, torch.float64, rows)
    x = theta.astype(np.float64)
    wells = np.minimum(np.abs(x[:, None] - x) - 0.5, 0)
    np.fill_diagonal(wells, 0)
    assert brute.energy() == pytest.approx(wells[:rows].sum(), rel=1e-12)
    bisected = pairs.bisection_energy(theta, 0.5, rows or 100)
    assert bisected == pytest.approx(wells[:rows].sum(), rel=1e-12)
    assert np.array_equal(brute.force(), oracle.pair_force(theta, 0.5)[:rows])
    closer = np.count_nonzero(np.abs(x[:, None] - x) < 0.5) // 2 - 50
    assert pairs.tree_pairs(theta, 0.5) == pairs.bisection_pairs(theta, 0.5) == closer


def test_histograms_of_the_peers_agree() -> None:
    theta = states.gaussian(5000)
    wanted = histograms.numpy_histogram(theta.numpy(), 8)
    assert np.array_equal(histograms.numpy_bincount(theta.numpy(), 8), wanted)
    assert np.array_equal(histograms.torch_bincount(theta, 8), wanted)
    assert np.array_equal(histograms.torch_histc(theta, 8), wanted)


@pytest.mark.parametrize("package", ["fast_histogram", "boost_histogram"])
def test_histograms_of_packages_agree(package: str) -> None:
    pytest.importorskip(package)
    theta = states.gaussian(5000)
    threads = (1,) if package == "boost_histogram" else ()
    counts = getattr(histograms, package)(theta.numpy(), 8, *threads)()
    assert np.array_equal(counts, histograms.numpy_histogram(theta.numpy(), 8))


def test_states_are_what_they_are_called() -> None:
    theta = states.gaussian(1000, 100)
    clusters = pysoftq.density(states.in_state(theta, "9 clusters"), bins=2**10).counts
    gaps = np.diff(np.flatnonzero(clusters))
    assert np.count_nonzero(gaps > 100) == 8
    assert np.count_nonzero(gaps > 1) == 8
    single = pysoftq.density(states.in_state(theta, "one bin")).counts
    assert sorted(single[single > 0].tolist()) == [1, 1, theta.numel() - 2]
    assert states.in_state(theta, "Gaussian") is theta


def test_resnet20_has_its_weights() -> None:
    weights = states.resnet20()
    assert len(weights) == 20
    assert sum(theta.numel() for theta in weights) == 268_336


@pytest.mark.parametrize("case", __main__.CASES)
def test_every_case_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test measures in a new Python, which needs seconds to load torch.
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forkserver())
    comparisons = list(__main__.CASES[case](Options(size="tiny", output=tmp_path)))
    found = report.measures(comparisons)
    assert len(found) == sum(len(one.measures()) for one in comparisons) > 0
    for one in comparisons:
        assert one.key.startswith(case)
        assert one.timings or one.extra
        assert one.checks or not one.timings
        if case in ("force_step", "density", "potential", "pairs", "sorting", "bandwidth"):
            assert any(state in one.key for state in states.STATES) or one.key == "density/1e4"


def test_what_cannot_run_is_told() -> None:
    found, skipped = harness.optional({"good": lambda: 3, "torch.compile": torch.compile})
    assert found == {"good": 3}
    assert skipped == ("torch.compile: no working C++ compiler",)
    one = next(force_step.run(TINY))
    assert one.skipped == skipped
    assert [timing.name for timing in one.timings] == ["pysoftq", "PyTorch", "NumPy + SciPy"]


def test_peers_that_compile_may_be_left_out() -> None:
    options = Options(size="tiny", compile=False)
    one = next(force_step.run(options))
    assert one.skipped == ("torch.compile: left out by --no-compile",)
    curves, skipped = growth.measure(np.array([1.0]), options)
    assert not {"KeOps", "torch.compile"} & {curve.name for curve in curves}
    assert skipped == tuple(f"{name}: left out by --no-compile" for name in growth.COMPILED)


def test_a_wrong_contestant_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    right = force_step.torch_force_step

    def wrong(parameters: list, *arguments: object) -> None:
        right(parameters, *arguments)
        parameters[0].grad.view(-1)[7] += 1.0

    monkeypatch.setattr(force_step, "torch_force_step", wrong)
    with pytest.raises(RuntimeError, match="contestants disagree: PyTorch differs"):
        list(force_step.run(TINY))


def test_race_alternates_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(ticks)))
    order: list[str] = []
    contestants = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = harness.race(contestants, Options(size="full"), shares={"b": 0.25}, seconds=10)
    rounds = timings[0].rounds
    assert rounds == timings[1].rounds >= Options(size="full").rounds
    # Two calls each to warm up and to find the number of calls, then turns that alternate.
    turns = order[4:]
    assert len(turns) == 2 * rounds
    assert turns == [*"abba"] * (rounds // 2) + [*"ab"] * (rounds % 2)
    # The clock advances by one at each look, so each sample lasts one second exactly; the second
    # contestant does a quarter of the work.
    assert timings[0].seconds == Spread(1.0, 1.0, 1.0)
    assert timings[1].seconds == timings[1].ratio == Spread(4.0, 4.0, 4.0)
    assert timings[1].extremes == (4.0, 4.0)


def test_ratios_are_those_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that slows down threefold halfway: each round's ratio is 2 all the same.
    samples = {"ours": [1.0, 1.0, 3.0, 3.0, 3.0], "peer": [2.0, 2.0, 6.0, 6.0, 6.0]}
    left = {name: iter(values) for name, values in samples.items()}
    monkeypatch.setattr(harness, "_calls", lambda *_: 1)
    monkeypatch.setattr(harness, "_sample", lambda name, *_: next(left[name]))
    ours, peer = harness.race({name: name for name in samples}, Options(size="full"), seconds=0)
    assert peer.ratio == Spread(2.0, 2.0, 2.0)
    assert ours.seconds == Spread(3.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("number", "word"), [(10, "10"), (1000, "1e3"), (25_000, "2.5e4"), (10**8, "1e8")]
)
def test_counts_in_words(number: int, word: str) -> None:
    assert harness.count(number) == word


def _comparison() -> Comparison:
    ours = Timing("ours", Spread(1e-3, 9.5e-4, 1.1e-3), (9e-4, 2e-3), Spread(1, 1, 1), 9, 5)
    peer = Timing("PyTorch", Spread(2.5e-2, 0.02, 0.03), (0.02, 0.03), Spread(25, 20, 30), 9, 1)
    return Comparison(
        key="force_step/1e6/Gaussian",
        setting="setting",
        timings=(ours, peer),
        checks=("equal",),
        skipped=("torch.compile: none",),
        threads=1,
        rates={"PyTorch": "3 G/s"},
        extra={"error": Measure(Spread.exactly(0.5), "%")},
    )


def test_report_files(tmp_path: Path) -> None:
    machine = report.environment(TINY)
    document, page = report.write(tmp_path / "sub" / "name", "cpu", machine, [_comparison()])
    content = json.loads(document.read_text())
    assert content["environment"]["threads"] == 1
    assert content["comparisons"][0]["timings"][1]["ratio"]["median"] == 25
    text = page.read_text()
    for line in (
        "| PyTorch | 25 ms | 20 ms – 30 ms | 9 × 1 | 25× (20 – 30) | 3 G/s |",
        "| full force step, 1e6 weights | PyTorch | Gaussian | ≥ 15× | **25**× (20 – 30) | met |",
        "- skipped: torch.compile: none",
        "- checked: equal",
        "- error: 0.5%",
        f"- pysoftq: {pysoftq.__version__}",
    ):
        assert line in text.splitlines()


def test_targets_are_met_or_missed() -> None:
    measures = {
        "sorting/1e7/one bin/np.sort": Measure(Spread(0.25, 0.2, 0.5), "×"),
        "bandwidth/1e8/Gaussian/share of STREAM": Measure(Spread.exactly(0.8), ""),
    }
    lines = targets.table(targets.CPU, measures)
    # The peer took a quarter of our time: we took four times its own.
    assert (
        "| exact energy of 1e7 weights | np.sort | one bin | ≤ 2.5× its time "
        "| **4**× its time (2 – 5) | **missed** |"
    ) in lines
    assert (
        "| full force step, 1e8 weights, all threads | STREAM at 20 bytes a weight | Gaussian "
        "| ≥ 70 % | **80** % | met |"
    ) in lines
    # Of the cases that were run; nothing is said of the others.
    assert [line.split(" | ")[0] for line in lines if "not measured" in line] == [
        "| exact energy of 1e8 weights"
    ]


def test_every_target_has_its_case() -> None:
    for target in (*targets.CPU, *targets.CUDA):
        assert target.pattern.partition("/")[0] in __main__.CASES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_at_the_peak() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(memory.added_bytes, (partial(np.ones, 10**7), "cpu"))
    assert peak == pytest.approx(8e7, rel=0.05)


def test_growth_follows_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = growth.Curve("sort", (10, 100, 1000, 10_000), (1.0, 1.0, 1.0, 100.0))
    assert curve.fitted == (1000, 10_000)
    assert curve.slope() == pytest.approx(2)
    # A sum over pairs that takes half a second is not tried at a size 3.2 times larger.
    times = {"sort": 0.5, "direct sum": 0.5}
    monkeypatch.setattr(
        *(growth, "CURVES"),
        {"sort": (lambda *_: int, False), "direct sum": (lambda *_: int, True)},
    )

    def race(contestants: dict, *_: object, **__: object) -> list[Timing]:
        fixed = {name: Spread.exactly(times[name]) for name in contestants}
        return [Timing(name, value, (0, 0), value, 2, 1) for name, value in fixed.items()]

    monkeypatch.setattr(growth, "race", race)
    curves, skipped = growth.measure(np.array([1.0, 1.5]), TINY)
    assert [(one.name, one.sizes) for one in curves] == [("sort", (10, 32)), ("direct sum", (10,))]
    assert not skipped


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads(), pysoftq.get_num_threads()
    arguments = ["growth", "density", "--size", "tiny", "--threads", "2"]
    assert __main__.main([*arguments, "--output", str(tmp_path)]) == 0
    assert (torch.get_num_threads(), pysoftq.get_num_threads()) == threads
    assert "| np.histogram |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("growth-cpu-tiny.png", "growth-cpu-tiny.pdf"),
        *("cpu-growth-density-tiny.json", "cpu-growth-density-tiny.md"),
    }


def test_results_are_written_after_each_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(options: Options) -> Iterator[Comparison]:
        yield _comparison()
        raise KeyboardInterrupt

    monkeypatch.setitem(__main__.CASES, "density", stopped)
    with pytest.raises(KeyboardInterrupt):
        __main__.main(["density", "--output", str(tmp_path), "--name", "running"])
    content = json.loads((tmp_path / "running.json").read_text())
    assert [one["key"] for one in content["comparisons"]] == ["force_step/1e6/Gaussian"]
    assert content["measures"]["force_step/1e6/Gaussian/PyTorch"] == {
        "value": {"median": 25, "first": 20, "third": 30},
        "unit": "×",
    }
    assert "**25**× (20 – 30)" in (tmp_path / "running.md").read_text()


@pytest.mark.parametrize("wrong", [["speed"], ["--threads", "0"]])
def test_wrong_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(wrong)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def _networks(accuracy: float, bits: float) -> tuple[NetworkRow, ...]:
    return (
        NetworkRow("pretrained", 0.99, None, None, None, 80_000),
        NetworkRow("soft, refined", accuracy, bits, 4.0, 2.5, 17_000),
        NetworkRow("HEQ-4", 0.95, 4.0, 4.0, 4.0, 18_000),
    )


@pytest.mark.parametrize(
    ("accuracy", "bits", "expected"),
    [
        (0.96, 3.5, "higher"),
        (0.94, 3.5, "lower"),
        (0.95, 3.5, "equal"),
        (0.96, 4.5, "more bits"),
        (0.96, 4.0, "more bits"),
    ],
)
def test_outcome_of_a_run(accuracy: float, bits: float, expected: str) -> None:
    assert digits.outcome(_networks(accuracy, bits)) == expected


def test_targets_beside_runs_at_fixed_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def row(job: digits_targets.Job, value: float) -> digits_targets.Row:
        size = round(20_000 / (1 + 10 * value))
        drop: float | None = None
        if job.kind in ("size", "front", digits_targets.HELD_OUT):
            size = round(0.98 * value * digits_targets.FLOAT32)
        elif job.kind == "drop":
            size, drop = 6_000, 0.3
        accuracy, seconds = 99 - 4_000 / size, 2.0
        if job.kind == "front":
            accuracy, seconds = accuracy - 0.1, 5.0
        return digits_targets.Row(
            job.kind, value, job.seed, size, size, accuracy, 99.0, drop, seconds
        )

    def run(job: digits_targets.Job, folder: Path) -> list[digits_targets.Row]:
        done.append(job.name)
        values = digits_targets.SHARES if job.kind == "front" else [job.value]
        return [row(job, value) for value in values]

    monkeypatch.setattr(digits_targets, "run", run)
    arguments = ["--output", str(tmp_path), "--seeds", "3"]
    assert digits_targets.main(arguments) == 0
    assert digits_targets.main([*arguments, "4"]) == 0  # goes on where it was
    assert len(done) == len(set(done)) == 2 * 27
    lines = (tmp_path / "digits-targets.md").read_text().splitlines()
    size, front = (line for line in lines if line.startswith("| 10 %, 8,081 bytes"))
    assert size.startswith("| 10 %, 8,081 bytes | 98.0 – 98.0 | 98.49 ± 0.00 | 98.4")
    assert front == "| 10 %, 8,081 bytes | 98.0 – 98.0 | 98.39 ± 0.00 | 98.49 ± 0.00 | -0.10 |"
    assert "CPU time of a front, in that of a run to one size: 2.50 ± 0.00." in lines
    assert "| 4 | 1 | 0.30 | 0.67 | 0.67 | 6,000 | 5,714 |" in lines
    assert "in that of one by hand: 1.00 ± 0.00." in (tmp_path / "digits-targets.md").read_text()


def test_fronts_with_and_without_coupling(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(
        "{dataset: digits, model: digits-resnet-small, pretrain_epochs: 1, epochs: 1, "
        "codebook_epochs: 1, front: [6000, 5000], threads: 1}"
    )
    arguments = [str(config), "--output", str(tmp_path), "--work", str(tmp_path / "runs")]
    arguments += ["--methods", "log", "uncoupled", "--one-network", "--baselines", "--seeds", "3"]
    assert coupling.main(arguments) == 0
    arguments.remove("--baselines")
    baselines = baselines_in(tmp_path / "small.json")
    assert coupling.main([*arguments, "4"]) == 0  # seed 3 is not repeated
    content = json.loads((tmp_path / "small.json").read_text())
    names = [(row["method"], row["seed"], row["size"]) for row in content["rows"]]
    parq = ("PARQ, bits = 3", "PARQ, bits = 2", "PARQ, ternary") if has_parq() else ()
    assert [row["method"] for row in baselines] == [
        *("k-means, K = 4", "k-means, K = 8"),
        *("ECVQ, rd_weight = 0.1", "ECVQ, rd_weight = 0.3"),
        *parq,
    ]
    for row in baselines:
        if row["method"] == "PARQ, ternary":
            assert 1 < row["bits"] <= math.log2(3)
    assert names == [
        (method, seed, size)
        for seed in (3, 4)
        for method in ("log", "uncoupled")
        for size in (6000, 5000)
    ]
    networks = [tmp_path / "runs" / f"{method}-{seed}" for method, seed, _ in names]
    pretrained = {(folder / "pretrained.safetensors").read_bytes() for folder in networks}
    assert len(pretrained) == 1
    # The gain in accuracy is that of the figures of merit on the test images.
    merits = {name: row["merit"] for name, row in zip(names, content["rows"], strict=False)}
    for gain in content["gains"]:
        each = [
            100 * (merits["log", seed, gain["size"]] - merits["uncoupled", seed, gain["size"]])
            for seed in (3, 4)
        ]
        assert gain["points"] == pytest.approx(np.mean(each), abs=1e-4)
        assert (gain["least"], gain["most"]) == pytest.approx((min(each), max(each)), abs=1e-4)
    assert (tmp_path / "small.md").read_text().count("\n| ") == 2 * 2 + 2 + 2
    assert (tmp_path / "small.png").is_file()


def baselines_in(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return [row for row in rows if row["size"] is None]


def test_ideas_for_the_coupling(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(
        "{dataset: digits, model: digits-resnet-small, pretrain_epochs: 1, epochs: 4, "
        "codebook_epochs: 1, front: [12000, 6000], threads: 1}"
    )
    coupled = ["linear", "while training", "by curvature", "to the end", "linear h=0.02"]
    methods = [*coupled, "merged early"]
    arguments = [str(config), "--output", str(tmp_path), "--work", str(tmp_path / "runs")]
    assert coupling.main([*arguments, "--seeds", "0", "--methods", *methods]) == 0
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["method"] for row in rows[::2]] == methods
    folders = [tmp_path / "runs" / f"{method}-0" for method in methods]
    reached = [json.loads((folder / "report.json").read_text())["target"] for folder in folders]
    assert [target["h"] for target in reached[-2:]] == [0.02, 0.0]
    last = json.loads((folders[-1] / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    merged = last - sum(rung["steps"] for rung in reached[-1]["rungs"])
    assert merged == math.ceil(variants.EARLY * last)
    linear, *others = (
        load_state_dict(tmp_path / "runs" / f"{method}-0" / "compressed.safetensors")
        for method in coupled
    )
    for weights in others:
        assert any(not torch.equal(weights[name], linear[name]) for name in linear)


@pytest.mark.parametrize(("method", "message"), [("logs", "'logs' is none of"), ("log h=x", "'x'")])
def test_a_method_that_there_is_not(
    method: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        coupling.main(["small.yaml", "--methods", method])
    assert message in capsys.readouterr().err


def test_a_text_of_the_library_and_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    library = tmp_path / "library"
    (library / "json" / "inner").mkdir(parents=True)
    (library / "test").mkdir()
    for name in ("b.py", "a.py", "json/c.py", "json/inner/d.py", "test/e.py"):
        lines = (f"def {name[0]}{number}(): return {number}" for number in range(200))
        (library / name).write_text("\n".join((f"# {name}", *lines)), encoding="utf-8")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(library)})
    assert library_text.main([str(tmp_path / "made"), "--epochs", "0.1"]) == 0
    text = (tmp_path / "made" / "text.txt").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# a.py", "# b.py", "# json/c.py", "# json/inner/d.py"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "made" / "model")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made" / "model")
    assert model.config.n_positions == library_text.CONTEXT
    assert model.config.vocab_size == len(tokenizer)


def test_gain_of_paired_examples() -> None:
    rng = np.random.default_rng(0)
    pairs = 100.0 * rng.integers(-1, 2, (3, 500))
    found = coupling.gain("log", 1_000, pairs)
    each = pairs.mean(axis=0)
    assert found.points == pytest.approx(pairs.mean())
    assert found.error == pytest.approx(np.std(each, ddof=1) / 500**0.5)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.points / found.error), 499))
    assert found.p_seeds == pytest.approx(stats.ttest_1samp(pairs.mean(axis=1), 0).pvalue)
    assert coupling.gain("log", 1_000, np.zeros((3, 500))).p == 1
    assert coupling.gain("log", 1_000, pairs[:1]).p_seeds is None


def test_digits_table_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[int, int, dict]] = []

    def run_seed(seed: int, threads: int, folder: Path, options: dict) -> tuple[NetworkRow, ...]:
        given.append((seed, threads, options))
        return _networks(*((0.96, 3.5) if seed == 7 else (0.94, 3.7)))

    monkeypatch.setattr(digits, "run_seed", run_seed)
    arguments = ["--seeds", "7", "9", "--set", "h=0.3", "--output", str(tmp_path)]
    assert digits.main([*arguments, "--threads", "2"]) == 0
    assert digits.main([*arguments, "--threads", "2", "1"]) == 0  # goes on where it was
    assert given == [(seed, threads, {"h": "0.3"}) for threads in (2, 1) for seed in (7, 9)]
    page = (tmp_path / "digits.md").read_text()
    assert "| pretrained | 99.0 ± 0.0 | 32 | – | 80.0 |" in page
    # Sample standard deviations: 1.41 of 96 and 94, 0.14 of 3.5 and 3.7.
    assert "| soft, refined | 95.0 ± 1.4 | 3.60 ± 0.14 | 2.50 ± 0.00 | 17.0 |" in page
    assert "| 7 | 99.0 | 96.0 | 96.0 (3.50) | 95.0 | higher |" in page
    assert "| 9 | 99.0 | 94.0 | 94.0 (3.70) | 95.0 | lower |" in page
    assert "than HEQ-4 in 4 of 4 runs: with a higher accuracy in 2, an equal one in 0" in page
    assert page in capsys.readouterr().out
    content = json.loads((tmp_path / "digits.json").read_text())
    assert content["config"]["h"] == 0.3
    assert content["threads"]["2"]["9"][1]["accuracy"] == 0.94
    with pytest.raises(SystemExit, match="made with other options"):
        digits.main(["--output", str(tmp_path)])


def test_heq_of_segments_has_few_values_in_each() -> None:
    theta = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))
    found = digits_granularity.equalize(theta, "group:15", 2)
    assert found.segments == 8
    assert found.codebook_sizes.tolist() == [4] * 8
    assert found.bits == pytest.approx(2)
    part = histogram_equalize(theta[1].flatten()[15:], 2)
    assert torch.equal(found.weights()[45:60], part.weights())


def test_table_of_granularities_has_means_over_the_seeds() -> None:
    def networks(bits: float, size: int) -> list[dict[str, object]]:
        rows = (
            NetworkRow("pretrained", 0.99, None, None, None, 80_000),
            NetworkRow("soft, refined", 0.97, bits, 4.0, 2.5, size, codebook_bytes=500),
        )
        return [asdict(row) for row in rows]

    runs = [
        {"granularity": granularity, "networks": networks(bits, size)}
        for granularity in ("layer", "channel")
        for bits, size in ((3.0, 15_000), (3.5, 17_000))
    ]
    lines = digits_granularity.table(runs).splitlines()
    assert len(lines) == 2 + 3  # the pretrained networks once
    assert lines[2] == "| layer | pretrained | 99.0 ± 0.0 | – | – | 0.0 | 80.0 |"
    numbers = "97.0 ± 0.0 | 3.25 ± 0.35 | 2.50 ± 0.00 | 0.5 | 16.0"
    assert lines[4] == f"| channel | soft, refined | {numbers} |"


def test_strengths_of_the_coupling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    less: dict[str, Any] = {"examples": 256, "epochs": 10, "pretrained": (1, 0.01), "bits": (2.5,)}
    small = [replace(one, **less) for one in strengths.PROBLEMS]
    monkeypatch.setattr(strengths, "PROBLEMS", small)
    names = ["without coupling", "linear", "force 4", "ends at one bit more", "schedule, followed"]
    settings = {name: strengths.SETTINGS[name] for name in names}
    monkeypatch.setattr(strengths, "SETTINGS", settings)
    assert strengths.main(["--seeds", "0", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "strengths.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == names * 2
    assert [row["coupled"] for row in rows if row["setting"] == "without coupling"] == [0, 0]
    assert all(0 < row["coupled"] <= 0.25 for row in rows if row["setting"] == "linear")
    text = capsys.readouterr().out
    assert "| coupling | series, 2.5 bits | tables, 2.5 bits |" in text
    monkeypatch.setattr(strengths, "run", None)  # what is there is not repeated
    assert strengths.main(["--seeds", "0", "--output", str(tmp_path)]) == 0
