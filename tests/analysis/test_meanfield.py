from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner, Result
from matplotlib.figure import Figure

from pysoftq.analysis.figures import save_figure
from pysoftq.analysis.figures.meanfield import draw_mean_field
from pysoftq.analysis.meanfield import MeanFieldStudy, fit_order, study_mean_field
from pysoftq.analysis.options import MeanFieldOptions
from pysoftq.analysis.results import load_result, save_result
from pysoftq.cli.meanfield import meanfield

BINS = (64, 256, 1024, 4096)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv": 0.1 * torch.randn(12, 8, 3, 3, generator=generator),
        "constant": torch.ones(3, 4),
        "apart": torch.tensor([[0.0, 1.0]]),
        "fc": torch.rand(40, 50, generator=generator),
    }


@pytest.fixture(scope="module")
def study(weights: dict[str, torch.Tensor]) -> MeanFieldStudy:
    return study_mean_field(
        "net",
        weights,
        MeanFieldOptions(
            0.5,
            bins=BINS,
            fractions=(0.1, 0.5, 1.0),
            widths=(0.2, 0.5, 1.0),
            draws=8,
            default_bins=1024,
            repeats=1,
        ),
    )


def test_layers(study: MeanFieldStudy, weights: dict[str, torch.Tensor]) -> None:
    assert [(layer.name, layer.size) for layer in study.layers] == [("conv", 864), ("fc", 2000)]
    assert study.left_out == ("constant", "apart")
    theta = weights["fc"].double()
    spread = float(theta.std(correction=0))
    assert study.layers[1].sigma == pytest.approx(spread, rel=1e-12)
    assert study.layers[1].range == pytest.approx(float(theta.max() - theta.min()) / spread)
    assert study.exact_seconds.shape == (2,)
    assert (study.exact_seconds > 0).all()


@pytest.mark.parametrize("method", ["scan", "fft"])
def test_errors_against_brute_force(
    study: MeanFieldStudy, weights: dict[str, torch.Tensor], method: str
) -> None:
    scan = next(scan for scan in study.bins if scan.method == method)
    theta = weights["conv"].numpy()
    width = 0.5 * theta.astype(np.float64).std()
    energy, force = oracle.pair_energy(theta, width), oracle.pair_force(theta, width).ravel()
    for column, bins in enumerate(BINS):
        index = oracle.bin_index(theta, bins)
        counts = np.bincount(index, minlength=bins)
        spacing = float(np.ptp(theta)) / bins
        v = oracle.potential(counts, spacing, width)
        with_self = counts @ v
        if method == "scan":
            table = oracle.force_table(counts, spacing, width)
        else:
            inner = (v[2:] - v[:-2]) / (2 * spacing)
            table = np.concatenate([inner[:1], inner, inner[-1:]])
        inside = (index > 0) & (index < bins - 1)  # the fft's slope at the ends is its own affair
        error = (table[index] - force)[inside]
        found = scan.errors
        assert found.energy_self[0, column] == pytest.approx(with_self / energy - 1, abs=3e-7)
        without = (with_self + theta.size * width) / energy - 1
        assert found.energy[0, column] == pytest.approx(without, abs=3e-7)
        l2 = np.linalg.norm(error) / np.linalg.norm(force)
        assert found.force_l2[0, column] == pytest.approx(l2, rel=0.02)
        largest = np.abs(error).max() / np.abs(force).max()
        assert found.force_max[0, column] == pytest.approx(largest, rel=1e-4)


def test_self_term_is_what_separates_the_energies(study: MeanFieldStudy) -> None:
    errors = study.bins[0].errors
    # N w over |E|, the same for all bins.
    gap = errors.energy_self - errors.energy
    np.testing.assert_allclose(gap, gap[:, :1].repeat(len(BINS), axis=1), rtol=1e-9)
    assert (gap > 0).all()


def test_a_finer_histogram_is_closer(study: MeanFieldStudy) -> None:
    for scan in study.bins:
        assert (np.diff(scan.errors.force_l2, axis=1) < 0).all()
        assert scan.force_order is not None
        assert 0.4 < scan.force_order.order < 1.5


def test_the_whole_sample_is_the_histogram(study: MeanFieldStudy) -> None:
    sampling, column = study.sampling, BINS.index(study.default_bins)
    exact = study.bins[0].errors
    for name in ("energy", "energy_self", "force_l2", "force_max"):
        mean, spread = getattr(sampling.mean, name), getattr(sampling.spread, name)
        np.testing.assert_allclose(mean[:, -1], getattr(exact, name)[:, column], rtol=1e-5)
        np.testing.assert_allclose(spread[:, -1], 0, atol=1e-7)
        assert (spread[:, :-1] > 1e-4).all()
    assert (np.diff(sampling.mean.force_l2, axis=1) < 0).all()


def test_samples_are_unbiased(weights: dict[str, torch.Tensor]) -> None:
    draws = 200
    study = study_mean_field(
        "net",
        {"fc": weights["fc"]},
        MeanFieldOptions(
            0.5,
            bins=(1024,),
            fractions=(0.2,),
            widths=(),
            draws=draws,
            default_bins=1024,
            repeats=1,
        ),
    )
    mean, spread = study.sampling.mean.energy[0, 0], study.sampling.spread.energy[0, 0]
    assert abs(mean - study.bins[0].errors.energy[0, 0]) < 4 * spread / draws**0.5


def test_width_scan_meets_the_bins_scan(study: MeanFieldStudy) -> None:
    column = BINS.index(study.default_bins)
    np.testing.assert_array_equal(
        study.widths.errors.force_l2[:, 1], study.bins[0].errors.force_l2[:, column]
    )


def test_order_of_a_known_law() -> None:
    bins = [2**k for k in range(6, 12)]
    heights = np.array([[1.0], [30.0], [0.2]])
    errors = heights * np.array(bins, dtype=np.float64) ** -1.5
    resolved = np.ones(errors.shape, dtype=bool)
    resolved[1, :2] = False
    errors[1, :2] = 1.0  # not resolved, so of no concern
    errors[2, 3] = 1e-9  # rounding
    order = fit_order(bins, errors, resolved)
    assert order is not None
    assert order.order == pytest.approx(1.5, abs=1e-9)
    assert order.points == 6 + 4 + 5
    assert fit_order(bins, errors, np.zeros(errors.shape, dtype=bool)) is None


def test_order_and_its_error_against_lstsq() -> None:
    rng = np.random.default_rng(1)
    bins = [2**k for k in range(6, 14)]
    logs = -0.8 * np.log(bins) + np.array([[0.0], [2.0]]) + 0.1 * rng.standard_normal((2, 8))
    order = fit_order(bins, np.exp(logs), np.ones((2, 8), dtype=bool))
    design = np.column_stack([np.tile(np.log(bins), 2), np.repeat(np.eye(2), 8, axis=0)])
    solution, rss, *_ = np.linalg.lstsq(design, logs.ravel(), rcond=None)
    stderr = np.sqrt(rss[0] / (16 - 3) * np.linalg.inv(design.T @ design)[0, 0])
    assert order is not None
    assert order.order == pytest.approx(-solution[0], rel=1e-9)
    assert order.stderr == pytest.approx(stderr, rel=1e-9)


def test_the_log_potential_against_brute_force(weights: dict[str, torch.Tensor]) -> None:
    options = MeanFieldOptions(
        0.5,
        bins=BINS,
        fractions=(0.3, 1.0),
        widths=(0.5,),
        draws=3,
        default_bins=1024,
        repeats=1,
        potential="log",
    )
    study = study_mean_field("net", weights, options)
    assert study.potential == "log"
    assert study.left_out == ("constant", "apart")  # two weights, isolated: no force
    theta = weights["conv"].numpy()
    width = 0.5 * theta.astype(np.float64).std()
    energy, force = oracle.log_energy(theta, width), oracle.log_force(theta, width).ravel()
    found = study.bins[0].errors
    for column, bins in enumerate(BINS):
        index, spacing = oracle.bin_index(theta, bins), float(np.ptp(theta)) / bins
        counts = np.bincount(index, minlength=bins)
        shares = oracle.bin_occupancy(counts, spacing, width)[index] / theta.size
        assert found.energy[0, column] == pytest.approx(
            -np.log(shares).sum() / energy - 1, abs=3e-7
        )
        error = oracle.log_force_table(counts, spacing, width)[index] - force
        l2 = np.linalg.norm(error) / np.linalg.norm(force)
        assert found.force_l2[0, column] == pytest.approx(l2, rel=1e-3)
    np.testing.assert_array_equal(found.energy, found.energy_self)
    # All weights, with strength 1: the force of a training step.
    column = BINS.index(1024)
    np.testing.assert_allclose(
        study.sampling.mean.force_l2[:, 1], found.force_l2[:, column], rtol=1e-4
    )
    assert (study.sampling.mean.force_l2[:, 0] > found.force_l2[:, column]).all()
    assert isinstance(draw_mean_field(study), Figure)


def test_advice(study: MeanFieldStudy) -> None:
    worst = study.bins[0].errors.force_l2.max(axis=0)
    assert study.bins_for(worst[1]) == 256
    assert study.bins_for(np.nextafter(worst[1], 0)) == 1024
    assert study.bins_for(1e-12) is None
    with pytest.raises(ValueError, match="got method 'sort', expected one of scan, fft"):
        study.bins_for(0.1, "sort")


def test_saved_and_drawn(study: MeanFieldStudy, tmp_path: Path) -> None:
    path = save_result(study, tmp_path / "meanfield.json")
    read = load_result(MeanFieldStudy, path)
    assert read.layers == study.layers
    np.testing.assert_array_equal(read.bins[1].errors.energy, study.bins[1].errors.energy)
    assert read.bins[1].force_order == study.bins[1].force_order
    for file in save_figure(draw_mean_field(read, 1e-9), tmp_path / "meanfield"):
        assert file.stat().st_size > 10_000
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"meanfield\.json: not a MeanFieldStudy: name: Field req"):
        load_result(MeanFieldStudy, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width: got 0.0"),
        ({"width": float("nan")}, "width: got nan"),
        ({"width": 0.5, "draws": 1}, "draws: got 1, expected at least 2"),
        ({"width": 0.5, "potential": "cubic"}, "potential must be 'linear' or 'log', got 'cubic'"),
        ({"width": 1e-9}, "net: no layer has a pair of weights in a well of 1e-09 sigma"),
    ],
)
def test_what_cannot_be_studied(options: dict, message: str) -> None:
    weights = {"fc": torch.arange(12.0).reshape(3, 4)}
    with pytest.raises(ValueError, match=message):
        study_mean_field("net", weights, MeanFieldOptions(**options))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(meanfield, [str(argument) for argument in arguments])


def test_command(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "net.pt")
    arguments = (tmp_path / "net.pt", "--max-bins", 1024, "--draws", 2, "--tolerance", 0.2)
    result = invoke(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "constant or without a pair in the well: constant, apart" in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"meanfield.json", "meanfield.png", "meanfield.pdf"}
    study = load_result(MeanFieldStudy, tmp_path / "out" / "meanfield.json")
    assert f"Recommended: {study.bins_for(0.2)} bins" in result.output

    content = json.loads(invoke(*arguments, "--json").stdout)
    assert content["bins"] == study.bins_for(0.2)
    assert [row["bins"] for row in content["scans"]] == [64, 128, 256, 512, 1024] * 2
    assert content["scans"][2]["force_worst"] == study.bins[0].errors.force_l2[:, 2].max()
    assert not Path("studies").exists()

    result = invoke(*arguments, "--out", tmp_path / "log", "--potential", "log")
    assert result.exit_code == 0, result.output
    assert "log potential" in result.output
    assert "with self" not in result.output
    assert (
        json.loads(invoke(*arguments, "--potential", "log", "--json").stdout)["potential"] == "log"
    )


def test_wrong_usage() -> None:
    assert invoke().exit_code == 2
    assert invoke("w.pt", "--tolerance", "0").exit_code == 2
    assert invoke("w.pt", "--max-bins", "32").exit_code == 2
