from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pysoftq
from pysoftq.report import NetworkRow

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import __main__, digits, force_step, harness, layers, peers  # noqa: E402

OPTIONS = harness.Options(threads=1, seconds=0.0, full=False)


@pytest.mark.parametrize("bins", [50, 2**10, 2**14])
@pytest.mark.parametrize("width", [0.01, 0.5, 4.0, 12.0])
def test_peers_follow_the_paper(bins: int, width: float) -> None:
    theta = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    wanted = pysoftq.force(theta, width, bins, method="fft")
    parameter = torch.nn.Parameter(torch.from_numpy(theta.reshape(60, 50)))
    parameter.grad = torch.ones_like(parameter)
    peers.torch_force_step([parameter], [width], [0.25], bins)
    gradient = np.ones_like(theta)
    peers.numpy_force_step([theta], [gradient], [width], [0.25], bins)
    # The noise of float32 convolutions grows with the well's depth against the bin.
    noise = 1e-6 * theta.size * width / (np.ptp(theta) / bins)
    for added in (parameter.grad.numpy().ravel(), gradient):
        np.testing.assert_allclose((added - 1) / 0.25, wanted, atol=noise)


def test_peers_leave_a_constant_layer_alone() -> None:
    parameter = torch.nn.Parameter(torch.full((4, 4), 0.5))
    parameter.grad = torch.ones_like(parameter)
    peers.torch_force_step([parameter], [1.0], [1.0], 64)
    gradient = np.ones(16, np.float32)
    peers.numpy_force_step([np.full(16, 0.5, np.float32)], [gradient], [1.0], [1.0], 64)
    assert parameter.grad.eq(1).all()
    assert (gradient == 1).all()


def test_states_are_what_they_are_called() -> None:
    theta = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    clusters = pysoftq.density(layers.clustered(theta, rng), bins=2**10).counts
    gaps = np.diff(np.flatnonzero(clusters))
    assert np.count_nonzero(gaps > 100) == 8
    assert np.count_nonzero(gaps > 1) == 8
    single = pysoftq.density(layers.one_bin(theta, rng)).counts
    assert sorted(single[single > 0].tolist()) == [1, 1, theta.numel() - 2]


def test_resnet20_shapes_without_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layers, "_PRETRAINED", tmp_path / "none.th")
    name, weights = layers.resnet20_weights()
    assert name == "Gaussian"
    assert len(weights) == 20
    assert sum(theta.numel() for theta in weights) == 268_336


def test_force_step_checks_and_races_all_contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    few = [torch.randn(size, 9, generator=generator) for size in (20, 300)]
    monkeypatch.setattr(force_step, "resnet20_weights", lambda: ("Gaussian", few))
    comparisons = force_step.run(OPTIONS)
    assert [one.setting.split(", ")[-1] for one in comparisons] == [
        *("Gaussian", "9 tight clusters", "all in one bin")
    ]
    for one in comparisons:
        assert [timing.name for timing in one.timings] == [
            *("pysoftq, SoftQuantizer.add_force_", "pysoftq, core call"),
            *("PyTorch", "NumPy + SciPy"),
        ]
        assert len(one.checks) == 4


def test_a_wrong_contestant_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [torch.randn(50, 9, generator=torch.Generator().manual_seed(0))]
    monkeypatch.setattr(force_step, "resnet20_weights", lambda: ("Gaussian", few))
    right = force_step.torch_force_step

    def wrong(*arguments: object) -> None:
        right(*arguments)
        arguments[0][0].grad[7, 3] += 1.0

    monkeypatch.setattr(force_step, "torch_force_step", wrong)
    with pytest.raises(RuntimeError, match="contestants disagree: PyTorch differs"):
        force_step.run(OPTIONS)


def test_race_alternates_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(ticks)))
    order: list[str] = []
    contestants = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = harness.race(contestants, harness.Options(threads=1, seconds=10.0, full=False))
    rounds = timings[0].rounds
    assert rounds == timings[1].rounds >= harness.FEWEST_ROUNDS
    # Two calls each to warm up and to find the number of calls, then turns that alternate.
    turns = order[4:]
    assert len(turns) == 2 * rounds
    assert turns == [*"abba"] * (rounds // 2) + [*"ab"] * (rounds % 2)
    # The clock advances by one at each look, so each sample lasts one second exactly.
    assert (timings[0].median, timings[0].low, timings[0].high) == (1.0, 1.0, 1.0)


def test_report_files(tmp_path: Path) -> None:
    ours = harness.Timing("ours", 1e-3, 9e-4, 2e-3, (9.5e-4, 1.1e-3), 9, 5)
    peer = harness.Timing("peer", 2.5e-2, 2e-2, 3e-2, (2.4e-2, 2.6e-2), 9, 1)
    one = harness.Comparison("case", "setting", (ours, peer), ("equal",), {"peer": "3 G/s"})
    machine = harness.environment(OPTIONS)
    document, page = harness.write(tmp_path / "sub" / "name", machine, [one])
    content = json.loads(document.read_text())
    assert content["environment"]["threads"] == 1
    assert content["comparisons"][0]["ratios"] == {"ours": 1.0, "peer": pytest.approx(25)}
    assert "| peer | 25 ms | 20 ms – 30 ms | 9 × 1 | 25× | 3 G/s |" in page.read_text()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads(), pysoftq.get_num_threads()
    try:
        arguments = ["density", "--seconds", "0", "--output", str(tmp_path)]
        assert __main__.main(arguments) == 0
    finally:
        torch.set_num_threads(threads[0])
        pysoftq.set_num_threads(threads[1])
    assert "| np.histogram |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"density.json", "density.md"}


@pytest.mark.parametrize("wrong", [["speed"], ["--cpu-time", "--threads", "2"]])
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
    [(0.96, 3.5, True), (0.94, 3.5, False), (0.96, 4.5, False), (0.95, 3.5, False)],
)
def test_better_means_smaller_and_more_accurate(
    accuracy: float, bits: float, expected: bool
) -> None:
    assert digits.better(_networks(accuracy, bits)) is expected


def test_digits_table_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[int, dict]] = []

    def run_seed(seed: int, folder: Path, options: dict) -> tuple[NetworkRow, ...]:
        given.append((seed, options))
        return _networks(*((0.96, 3.5) if seed == 7 else (0.94, 3.7)))

    monkeypatch.setattr(digits, "run_seed", run_seed)
    arguments = ["--seeds", "7", "9", "--set", "h=0.3", "--output", str(tmp_path)]
    assert digits.main(arguments) == 0
    assert given == [(7, {"h": "0.3", "threads": 1}), (9, {"h": "0.3", "threads": 1})]
    page = (tmp_path / "digits.md").read_text()
    assert "| pretrained | 99.0 ± 0.0 | 32 | – | 80.0 |" in page
    # Sample standard deviations: 1.41 of 96 and 94, 0.14 of 3.5 and 3.7.
    assert "| soft, refined | 95.0 ± 1.4 | 3.60 ± 0.14 | 2.50 ± 0.00 | 17.0 |" in page
    assert "| 7 | 99.0 | 96.0 (3.50) | 95.0 | yes |" in page
    assert "| 9 | 99.0 | 94.0 (3.70) | 95.0 | no |" in page
    assert page in capsys.readouterr().out
    content = json.loads((tmp_path / "digits.json").read_text())
    assert content["config"]["h"] == 0.3
    assert content["seeds"]["9"][1]["accuracy"] == 0.94
