from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pysoftq.analysis.hessian import leading_eigenvalues, probe_diagonal
from pysoftq.analysis.landscape import Landscape
from pysoftq.data.images import Dataset, Images


@pytest.fixture
def matrix() -> np.ndarray:
    """Symmetric, with eigenvalues of both signs."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    return (basis * np.linspace(-30, 12, 60)) @ basis.T


def test_leading_eigenvalues_against_dense(matrix: np.ndarray) -> None:
    found = leading_eigenvalues(lambda v: matrix @ v, 60, 4, tolerance=1e-6)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix)[:-5:-1], rtol=1e-8)
    assert (found.residuals < 1e-4).all()


def test_residuals_bound_the_error(matrix: np.ndarray) -> None:
    found = leading_eigenvalues(lambda v: matrix @ v, 60, 3, tolerance=0.1)
    exact = np.linalg.eigvalsh(matrix)
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.abs(exact - value).min() <= residual + 1e-9


def test_probes_are_exact_for_a_diagonal_matrix() -> None:
    diagonal = np.arange(5.0)
    np.testing.assert_array_equal(probe_diagonal(lambda v: diagonal * v, 5, 1, 2), diagonal)


def test_probes_estimate_the_diagonal(matrix: np.ndarray) -> None:
    probes = np.array([probe_diagonal(lambda v: matrix @ v, 60, 0, i) for i in range(400)])
    traces = probes.sum(axis=1)
    error = traces.std(ddof=1) / 20
    assert abs(traces.mean() - np.trace(matrix)) < 4 * error
    # Of random signs, the variance of the trace is twice the sum of the squares off the diagonal.
    off = matrix - np.diag(np.diag(matrix))
    assert traces.var() == pytest.approx(2 * np.square(off).sum(), rel=0.2)
    assert not np.array_equal(probes[0], probes[1])


class Tiny(nn.Module):
    """Two layers with a smooth activation, batch normalisation between, and an unused weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.norm(self.first(x.flatten(1)))))


def test_hessian_of_a_network_against_autograd() -> None:
    torch.manual_seed(0)
    model = Tiny()
    pixels = torch.randint(0, 256, (700, 2, 2, 1), dtype=torch.uint8)  # more than one batch
    images = Images(pixels, torch.randint(0, 3, (700,)))
    data = Dataset("random", images, images, ("a", "b", "c"), (0.5,), (0.3,), 0, flip=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["norm.running_var"] *= 1.7
    landscape = Landscape(model, data, images)
    product = landscape.hessian_at(state)
    names, size = landscape.names, landscape.size
    assert size == 4 * 3 + 3 + 3 + 3 + 3 * 3 + 3 + 2
    found = np.stack([product(unit) for unit in np.eye(size)])

    double = Tiny().double().eval()
    shapes = [state[name].shape for name in names]
    x = data.normalize(pixels).double()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {
            name: part.reshape(shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        buffers = {name: value.double() for name, value in state.items() if name not in names}
        logits = torch.func.functional_call(double, {**weights, **buffers}, (x,))
        return nn.functional.cross_entropy(logits, images.labels)

    at = torch.cat([state[name].double().flatten() for name in names])
    expected = torch.autograd.functional.hessian(loss, at).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(expected).max() > 0.05
