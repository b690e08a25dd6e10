from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pysoftq.analysis.scaling import (
    fit_scaling,
    measure_energies,
    scaling_of_file,
    standard_deviation,
)
from scipy.stats import linregress

# Slope of log E against log N and mean squared residual, from an independent computation.
NETWORKS = {
    "resnet20-12fca82f.th": {0.1: (1.534, 0.063), 0.5: (1.596, 0.046), 1.0: (1.619, 0.048)},
    "resnet32-d509ac18.th": {0.1: (1.599, 0.106), 0.5: (1.619, 0.061), 1.0: (1.627, 0.059)},
    "resnet44-014dd654.th": {0.1: (1.585, 0.077), 0.5: (1.635, 0.066), 1.0: (1.654, 0.063)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_slopes_of_trained_networks(shared_data: Path, name: str) -> None:
    for width, expected in NETWORKS[name].items():
        energies, fit = scaling_of_file(shared_data / name, width)
        assert (round(fit.slope, 3), round(fit.residual, 3)) == expected
        assert fit.layers == len(energies.names) == int(name[6:8])
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


def test_layers_without_a_scale_stay_out_of_the_fit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {f"layer{n}": torch.randn(n, 5, generator=generator) for n in (10, 40, 160)}
    apart = torch.tensor([[0.0, 1.0]])  # two sigma apart, no pair in the well
    path = tmp_path / "weights.pt"
    torch.save({**weights, "constant": torch.ones(4, 4), "empty": torch.ones(0, 3)}, path)
    energies, fit = scaling_of_file(path, 0.5)
    assert energies.usable.tolist() == [True, True, True, False, False]
    assert energies.energies[3:].tolist() == [0.0, 0.0]
    kept = measure_energies(weights, 0.5)
    assert fit == fit_scaling(kept.sizes, kept.energies)
    assert not measure_energies({"apart": apart}, 0.5).usable.any()


@pytest.mark.parametrize(
    ("sizes", "energies", "message"),
    [
        ([10, 20], [-1.0, -2.0], "got 2 layers, wanted at least 3"),
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
    with pytest.raises(ValueError, match="conv: 2 of 4 weights are NaN or infinite"):
        measure_energies({"conv": theta}, 0.5)


def test_standard_deviation_far_from_zero() -> None:
    # In float32 the spread would vanish beside the mean.
    theta = torch.tensor([4096.0, 4096.0, 4096.001, 4096.001])
    expected = theta.numpy().astype(np.float64).std()
    assert standard_deviation("layer", theta) == pytest.approx(expected, rel=1e-9)
    assert standard_deviation("empty", torch.ones(0, 2)) == 0
