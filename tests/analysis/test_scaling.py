from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from scipy.integrate import quad
from scipy.stats import linregress, norm
from scipy.stats import t as student

from pysoftq.analysis.bootstrap import bootstrap_slopes, intervals95, resample
from pysoftq.analysis.figures import save_figure
from pysoftq.analysis.figures.scaling import draw_scaling
from pysoftq.analysis.results import load_result, save_result
from pysoftq.analysis.scaling import (
    LogTerms,
    ScalingStudy,
    fit_scaling,
    gaussian_code_length,
    gaussian_overlap,
    layer_kind,
    measure_energies,
    power_law,
    standard_deviation,
    study_scaling,
)
from pysoftq.analysis.sources import Network, read_network, read_networks
from pysoftq.cli import energy as energies
from pysoftq.cli.scaling import scaling
from pysoftq.models.weight_files import save_state

# Slope of log E against log N and mean squared residual, from an independent computation.
NETWORKS = {
    "resnet20-12fca82f.th": {0.1: (1.534, 0.063), 0.5: (1.596, 0.046), 1.0: (1.619, 0.048)},
    "resnet32-d509ac18.th": {0.1: (1.599, 0.106), 0.5: (1.619, 0.061), 1.0: (1.627, 0.059)},
    "resnet44-014dd654.th": {0.1: (1.585, 0.077), 0.5: (1.635, 0.066), 1.0: (1.654, 0.063)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_slopes_of_trained_networks(shared_data: Path, name: str) -> None:
    network = read_network(shared_data / name)
    for width, expected in NETWORKS[name].items():
        fit = study_scaling([network], width, widths=(), draws=10).pooled.fit
        assert (round(fit.slope, 3), round(fit.residual, 3)) == expected
        assert fit.layers == int(name[6:8])
        assert fit.alpha == pytest.approx(fit.slope - 1, abs=1e-15)


def test_energies_are_those_of_the_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{n}": torch.randn(n, 3, generator=generator) for n in (4, 30, 7)}
    measured = measure_energies(weights, 0.5)
    assert measured.names == ("layer4", "layer30", "layer7")
    assert measured.sizes.tolist() == [12, 90, 21]
    for theta, sigma, energy in zip(
        weights.values(), measured.sigmas, measured.energies, strict=True
    ):
        x = theta.numpy().astype(np.float64).ravel()
        assert sigma == pytest.approx(x.std(), rel=1e-14)
        pairs = np.minimum(np.abs(x[:, None] - x) - 0.5 * x.std(), 0)
        np.fill_diagonal(pairs, 0)
        assert energy == pytest.approx(pairs.sum(), rel=1e-12)


def test_fit_against_scipy() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 40_000, size=12)
    energies = -0.3 * sizes**1.6 * rng.lognormal(0, 0.2, size=12)
    fit, reference = fit_scaling(sizes, energies), linregress(np.log(sizes), np.log(-energies))
    assert fit.slope == pytest.approx(reference.slope, rel=1e-12)
    assert fit.intercept == pytest.approx(reference.intercept, rel=1e-12)
    assert fit.stderr == pytest.approx(reference.stderr, rel=1e-10)
    assert fit.r2 == pytest.approx(reference.rvalue**2, rel=1e-12)
    residuals = np.log(-energies) - reference.intercept - reference.slope * np.log(sizes)
    assert fit.residual == pytest.approx(np.mean(residuals**2), rel=1e-10)
    np.testing.assert_allclose(np.log(fit.energy(sizes)), np.log(-energies) - residuals, rtol=1e-12)


def test_exact_power_law() -> None:
    sizes = np.array([432, 2304, 9216, 36864])
    fit = fit_scaling(sizes, -2.5 * sizes**1.66)
    assert fit.alpha == pytest.approx(0.66, abs=1e-12)
    assert fit.residual < 1e-25
    assert fit.r2 == pytest.approx(1, abs=1e-12)


def test_layers_without_a_scale_stay_out_of_the_fit() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {f"layer{n}": torch.randn(n, 5, generator=generator) for n in (10, 40, 160)}
    apart = torch.tensor([[0.0, 1.0]])  # two sigma apart, no pair in the well
    others = {"constant": torch.ones(4, 4), "empty": torch.ones(0, 3), "apart": apart}
    energies = measure_energies({**weights, **others}, 0.5)
    assert energies.usable.tolist() == [True, True, True, False, False, False]
    assert energies.energies[3:].tolist() == [0.0, 0.0, 0.0]
    study = study_scaling([Network("a", {**weights, **others})], 0.5, widths=(), draws=10)
    assert study.networks[0].left_out == tuple(others)
    assert study.networks[0].energies.names == tuple(weights)
    kept = measure_energies(weights, 0.5)
    assert study.pooled.fit == fit_scaling(kept.sizes, kept.energies)


@pytest.mark.parametrize(
    ("sizes", "energies", "message"),
    [
        ([10, 20], [-1.0, -2.0], "layers with an energy: 2, expected at least 3"),
        ([10, 20, 30], [-1.0, -2.0], "got 3 sizes and 2 energies"),
        ([10, 10, 10], [-1.0, -2.0, -3.0], "all layers have 10 weights"),
        ([10, 20, 30], [-1.0, 0.0, -3.0], "must be finite and nonzero"),
        ([10, 20, 30], [-1.0, np.nan, -3.0], "must be finite and nonzero"),
        ([0, 20, 30], [-1.0, -2.0, -3.0], "must be finite and nonzero"),
    ],
)
def test_what_cannot_be_fitted(sizes: list, energies: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_scaling(sizes, energies)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_width_must_be_positive(width: float) -> None:
    with pytest.raises(ValueError, match="width: got"):
        measure_energies({"layer": torch.ones(2, 2)}, width)


def test_weights_must_be_finite() -> None:
    theta = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    with pytest.raises(ValueError, match="conv: 2 of 4 weights are not finite"):
        measure_energies({"conv": theta}, 0.5)


def test_standard_deviation_far_from_zero() -> None:
    # In float32 the spread would vanish beside the mean.
    theta = torch.tensor([4096.0, 4096.0, 4096.001, 4096.001])
    expected = theta.numpy().astype(np.float64).std()
    assert standard_deviation("layer", theta) == pytest.approx(expected, rel=1e-9)
    assert standard_deviation("empty", torch.ones(0, 2)) == 0


def test_overlap_of_gaussian_weights_against_quadrature() -> None:
    for width in (1e-3, 0.1, 0.5, 1.0, 3.0, 20.0):
        # Differences of two weights of variance 1 have variance 2.
        expected, _ = quad(lambda x, w=width: (1 - x / w) * np.exp(-x * x / 4), 0, width)
        assert gaussian_overlap(width) == pytest.approx(expected / np.sqrt(np.pi), rel=1e-9)


def test_energy_of_gaussian_weights_is_the_null_model() -> None:
    theta = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(2)) * 0.03
    measured = measure_energies({"layer": theta}, 0.5)
    size, sigma = theta.numel(), float(measured.sigmas[0])
    null = size * (size - 1) * 0.5 * sigma * gaussian_overlap(0.5)
    assert -measured.energies[0] == pytest.approx(null, rel=5e-3)


def test_code_length_of_gaussian_weights_against_quadrature() -> None:
    for width in (0.05, 0.5, 3.0):
        y = np.linspace(-width, width, 2001)
        for size in (100, np.inf):

            def length(x: float, y: np.ndarray = y, share: float = 1 / size) -> float:
                density = np.trapezoid(norm.pdf(x + y) * (1 - np.abs(y) / y[-1]), y)
                return -norm.pdf(x) * np.log(share + (1 - share) * density)

            expected, _ = quad(length, -8, 8, limit=200)
            assert gaussian_code_length(width, size)[0] == pytest.approx(expected, rel=1e-4)


def test_code_length_of_gaussian_weights_is_the_null_model() -> None:
    theta = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(2)) * 0.03
    measured = measure_energies({"layer": theta}, 0.5, "log")
    null = 200_000 * gaussian_code_length(0.5, 200_000)[0]
    assert measured.energies[0] == pytest.approx(null, rel=2e-3)


def random_network(seed: int, power: float, layers: int = 12) -> Network:
    """Gaussian layers (C, C) with a spread that falls as N^power."""
    generator = torch.Generator().manual_seed(seed)
    sides = np.geomspace(12, 160, layers).astype(int)
    return Network(
        f"network{seed}",
        {f"fc{n}": torch.randn(n, n, generator=generator) * float(n) ** (2 * power) for n in sides},
    )


def test_terms_of_gaussian_layers_are_those_they_were_made_of() -> None:
    law = study_scaling([random_network(0, -0.4)], 0.5, widths=(), draws=10).pooled
    terms = law.terms
    assert terms.pairs.value == pytest.approx(2, abs=1e-12)
    # Square layers: sqrt(2 / fan-in) is N^(-1/4) exactly, and training the rest of -0.4.
    assert terms.initialization.value == pytest.approx(-0.25, abs=1e-12)
    assert terms.training.value == pytest.approx(-0.15, abs=0.01)
    assert terms.shape.value == pytest.approx(0, abs=0.02)
    assert law.fit.slope == pytest.approx(1.6, abs=0.02)


def test_the_log_potential_has_exponent_one_whatever_sigma() -> None:
    networks = [random_network(0, power) for power in (-0.4, 0.0)]
    laws = [
        study_scaling([network], 0.5, widths=(), draws=10, potential="log").pooled
        for network in networks
    ]
    assert laws[0].fit.slope == pytest.approx(laws[1].fit.slope, abs=1e-6)
    for law in laws:
        assert isinstance(law.terms, LogTerms)
        terms = [getattr(law.terms, field.name).value for field in fields(law.terms)]
        assert sum(terms) == pytest.approx(law.fit.slope, abs=1e-12)
        assert law.terms.weights.value == pytest.approx(1, abs=1e-12)
        assert abs(law.terms.finite_size.value) < 0.02
        assert abs(law.terms.shape.value) < 0.02
        assert law.fit.slope == pytest.approx(1, abs=0.02)
        assert law.p > 1e-4 or abs(law.fit.slope - 1) < 0.02


def test_constant_layers_have_no_code_to_fit() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {f"layer{n}": torch.randn(n, 5, generator=generator) for n in (10, 40, 160)}
    others = {"constant": torch.ones(4, 4), "empty": torch.ones(0, 3)}
    study = study_scaling([Network("a", {**weights, **others})], 0.5, (), 10, potential="log")
    assert study.networks[0].left_out == tuple(others)
    assert study.networks[0].energies.potential == "log"


@pytest.mark.parametrize("name", NETWORKS)
def test_terms_add_up_to_the_slope(shared_data: Path, name: str) -> None:
    law = study_scaling([read_network(shared_data / name)], 0.5, widths=(), draws=50).pooled
    terms = [getattr(law.terms, field.name).value for field in fields(law.terms)]
    assert sum(terms) == pytest.approx(law.fit.slope, abs=1e-12)
    # The architecture alone takes off more than half of what separates the slope from 2.
    assert law.terms.initialization.value < (law.fit.slope - 2) / 2


def test_law_against_lstsq_and_the_t_distribution() -> None:
    energies = measure_energies(random_network(3, -0.3).weights, 0.7)
    law = power_law([energies], draws=10)
    x, y = np.log(energies.sizes), np.log(-energies.energies)
    design = np.stack([np.ones_like(x), x], axis=1)
    solution, rss, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = rss[0] / (x.size - 2) * np.linalg.inv(design.T @ design)[1, 1]
    assert law.fit.slope == pytest.approx(solution[1], rel=1e-10)
    assert law.fit.stderr == pytest.approx(np.sqrt(variance), rel=1e-6)
    t = (solution[1] - 2) / np.sqrt(variance)
    assert law.t == pytest.approx(t, rel=1e-6)
    assert law.p == pytest.approx(2 * student.sf(abs(t), x.size - 2), rel=1e-5)


def test_bootstrap_slopes_against_samples_written_out() -> None:
    rng = np.random.default_rng(4)
    x, ys = rng.normal(size=9), rng.normal(size=(2, 9))
    counts = resample([9], 40, seed=0)
    slopes = bootstrap_slopes(x, ys, counts)
    for sample, found in zip(counts, slopes, strict=True):
        drawn = np.repeat(np.arange(9), sample)
        expected = [np.polyfit(x[drawn], y[drawn], 1)[0] for y in ys]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_samples_of_a_single_size_are_left_out() -> None:
    counts = np.array([[4, 0, 0], [2, 2, 0], [1, 2, 1]])
    slopes = bootstrap_slopes(np.array([1.0, 1.0, 2.0]), np.array([[0.0, 0.0, 3.0]]), counts)
    np.testing.assert_allclose(slopes, [[3.0]])


def test_resampling_is_clustered_by_network() -> None:
    counts = resample([5, 20], 4000, seed=1)
    assert counts.shape == (4000, 25)
    first, second = counts[:, :5].sum(axis=1), counts[:, 5:].sum(axis=1)
    # Each of two draws of a network brings as many layers as it has.
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {(10, 0), (5, 20), (0, 40)}
    assert np.mean(first == 5) == pytest.approx(0.5, abs=0.04)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.08)


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    x = np.linspace(0, 3, 25)
    inside = 0
    for seed in range(200):
        y = 1.6 * x + rng.normal(0, 0.3, x.size)
        slopes = bootstrap_slopes(x, y[None], resample([x.size], 400, seed))
        ((low, high),) = intervals95(slopes)
        inside += low <= 1.6 <= high
    assert 0.87 <= inside / 200 <= 0.99


def test_study_of_several_networks(tmp_path: Path) -> None:
    networks = [random_network(seed, power) for seed, power in ((6, -0.2), (7, -0.3))]
    study = study_scaling(networks, 0.5, widths=(0.3, 1.0), draws=200)
    assert study.pooled.fit.layers == 24
    slopes = [network.law.fit.slope for network in study.networks]
    assert slopes[1] < study.pooled.fit.slope < slopes[0]
    assert [scan.name for scan in study.scans] == ["network6", "network7", "pooled"]
    one = study_scaling(networks[:1], 1.0, widths=(), draws=200).pooled
    assert study.scans[0].slopes[1] == one.fit.slope
    assert (study.scans[0].low[1], study.scans[0].high[1]) == one.ci95
    for network in study.networks:
        assert network.residuals.sum() == pytest.approx(0, abs=1e-9)
        assert np.mean(network.residuals**2) == pytest.approx(network.law.fit.residual, rel=1e-9)
    assert [(kind.kind, kind.layers) for kind in study.kinds] == [("linear", 24)]

    path = save_result(study, tmp_path / "new" / "scaling.json")
    read = load_result(ScalingStudy, path)
    assert read.pooled == study.pooled
    np.testing.assert_array_equal(read.networks[1].residuals, study.networks[1].residuals)
    assert save_result(read, tmp_path / "again.json").read_bytes() == path.read_bytes()
    for file in save_figure(draw_scaling(read), tmp_path / "scaling"):
        assert file.stat().st_size > 10_000


def test_residuals_follow_depth_and_kind() -> None:
    shapes = {"conv": (8, 4, 3, 3), "dw": (40, 1, 3, 3), "fc": (10, 64), "fc2": (50, 64)}
    generator = torch.Generator().manual_seed(8)
    weights = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    study = study_scaling([Network("net", weights)], 0.5, widths=(), draws=10)
    kinds = {kind.kind: kind for kind in study.kinds}
    assert set(kinds) == {"conv 3×3", "conv 3×3, one input", "linear"}
    residuals = study.networks[0].residuals
    assert kinds["linear"].mean == pytest.approx(residuals[2:].mean())
    assert kinds["linear"].stderr == pytest.approx(abs(residuals[2] - residuals[3]) / 2)
    assert kinds["conv 3×3"].stderr is None
    trend = linregress([0, 1 / 3, 2 / 3, 1], residuals)
    assert (study.depth.slope, study.depth.p) == pytest.approx((trend.slope, trend.pvalue))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((10, 64), "linear"),
        ((8, 3, 7, 7), "conv 7×7"),
        ((8, 1, 3, 3), "conv 3×3, one input"),
        ((1, 1, 3, 3), "conv 3×3"),
        ((8, 4, 5), "conv 5"),
    ],
)
def test_kinds_of_layers(shape: tuple[int, ...], kind: str) -> None:
    assert layer_kind(shape) == kind


def test_network_that_cannot_be_fitted_is_named() -> None:
    small = Network("small", {"a": torch.randn(9, 9), "b": torch.randn(8, 9)})
    with pytest.raises(ValueError, match="small: layers with an energy: 2, expected at least 3"):
        study_scaling([small], 0.5)
    with pytest.raises(ValueError, match="got no network"):
        study_scaling([], 0.5)


def test_sources(tmp_path: Path) -> None:
    state = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_state(state, tmp_path / folder / "pretrained.safetensors")
        torch.save(state, tmp_path / folder / "net.pt")
    assert read_network(tmp_path / "a").name == "a"
    assert list(read_network(tmp_path / "a" / "net.pt").weights) == ["fc.weight"]
    files = [tmp_path / folder / "net.pt" for folder in ("a", "b")]
    assert [network.name for network in read_networks(files)] == list(map(str, files))


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not the folder of a run, it holds no pretrained"):
        read_network(tmp_path)
    with pytest.raises(ValueError, match="nothing: no such file or folder, and no model"):
        read_network("nothing")
    torch.save({"bias": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="no weight with two or more dimensions"):
        read_network(tmp_path / "w.pt")


def test_models_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        OSError, match=r"cannot download torchvision's weights of resnet18: .*route"
    ):
        read_network("resnet18")
    state = models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state
    )
    network = read_network("resnet18")
    assert network.name == "resnet18"
    assert len(network.weights) == 21
    assert torch.equal(network.weights["fc.weight"], state["fc.weight"])


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(scaling, [str(argument) for argument in arguments])


def test_command(tmp_path: Path) -> None:
    files = []
    for network in (random_network(9, -0.3, layers=5), random_network(10, -0.3, layers=4)):
        files.append(tmp_path / f"{network.name}.pt")
        torch.save(network.weights, files[-1])
    result = invoke(*files, "--width", 0.4, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "network10" in result.output
    assert "…" not in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"scaling.json", "scaling.png", "scaling.pdf"}
    study = load_result(ScalingStudy, tmp_path / "out" / "scaling.json")

    content = json.loads(invoke(*files, "--width", 0.4, "--json").output)
    assert list(content) == [
        *("potential", "width", "networks", "pooled", "depth", "kinds", "left_out")
    ]
    keys = ["layers", "slope", "stderr", "ci95", "alpha", "p", "mse", "r2", "terms"]
    assert [list(row) for row in content["networks"]] == [["name", *keys, "without_energy"]] * 2
    assert [row["name"] for row in content["networks"]] == ["network9", "network10"]
    assert list(content["pooled"]) == keys
    assert content["pooled"]["slope"] == study.pooled.fit.slope
    assert content["pooled"]["ci95"] == list(study.pooled.ci95)
    terms = content["pooled"]["terms"].values()
    assert sum(term["value"] for term in terms) == pytest.approx(study.pooled.fit.slope)
    assert content["depth"]["slope"] == study.depth.slope
    assert sum(kind["layers"] for kind in content["kinds"]) == study.pooled.fit.layers
    assert content["left_out"] == {}
    assert not Path("studies").exists()

    result = invoke(*files, "--potential", "log", "--out", tmp_path / "log")
    assert result.exit_code == 0, result.output
    assert "p (slope = 1)" in result.output
    assert "alpha" not in result.output
    study = load_result(ScalingStudy, tmp_path / "log" / "scaling.json")
    assert study.potential == "log"
    assert isinstance(study.pooled.terms, LogTerms)


@pytest.mark.parametrize("arguments", [(), ("w.pt", "--width", "0"), ("w.pt", "--width", "nan")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_tied_weights_count_once(tmp_path: Path) -> None:
    network = random_network(9, -0.3, layers=5)
    name, weight = next(iter(network.weights.items()))
    files = [tmp_path / "untied.pt", tmp_path / "tied.pt"]
    for file, more in zip(files, ({}, {"tied": weight, "copied": weight.clone()}), strict=True):
        torch.save({**network.weights, **more}, file)
    untied, tied = (json.loads(invoke(file, "--json").output) for file in files)
    assert tied["pooled"] == untied["pooled"]
    reason = f"the weights of {name}"
    assert tied["left_out"] == {"tied": {"tied": reason, "copied": reason}}
    shown = invoke(files[1], "--out", tmp_path).output
    assert f"tied: left out: tied ({reason}), copied ({reason})" in shown
    result = CliRunner().invoke(energies.energy, [str(files[1]), "--width", "0.5", "--json"])
    assert json.loads(result.output)["left_out"] == tied["left_out"]["tied"]
    assert len(json.loads(result.output)["layers"]) == 5


def test_a_network_that_is_given_twice(tmp_path: Path) -> None:
    torch.save(random_network(9, -0.3, layers=5).weights, tmp_path / "a.pt")
    error = invoke(tmp_path / "a.pt", tmp_path / "a.pt").exception
    assert isinstance(error, ValueError)
    assert "a.pt is given twice" in str(error)
