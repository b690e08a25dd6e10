"""Weights on other devices: the front-ends and the coupling give what they give on the CPU.

Where there is no GPU, tensors of the CPU stand for another device.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from devices import Device
from torch import nn
from torch.nn import functional as F

import pysoftq
from pysoftq import SoftQuantizer
from pysoftq.interaction import arrays, backends

THETA = np.random.default_rng(0).standard_normal(3000).astype(np.float32)


pytestmark = pytest.mark.devices("plain", "cuda emulated", "cuda")


@pytest.fixture
def place(device: Device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where tensors are whose interaction the backend of `device` computes."""
    if device.name == "cpu":
        monkeypatch.setattr(backends, "on_device", lambda _: device.backend)
        monkeypatch.setattr(arrays, "_on_host", lambda _: False)
    return torch.device(device.name)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
@pytest.mark.parametrize("layout", ["flat", "transposed", "strided"])
def test_front_ends(place, dtype, layout):
    theta = torch.from_numpy(THETA).to(dtype)
    theta = {"flat": theta, "transposed": theta.view(50, 60).T, "strided": theta[::3]}[layout]
    there = theta.to(place)
    x = (theta if dtype == torch.float64 else theta.float()).numpy()
    for method in ("sort", "direct"):
        forces = pysoftq.pair_force(there, 0.5, method)
        assert (forces.device.type, forces.dtype) == (place.type, torch.int64)
        np.testing.assert_array_equal(forces.cpu(), pysoftq.pair_force(x, 0.5, method))
        energy = pysoftq.pair_energy(there, 0.5, method)
        assert energy == pytest.approx(pysoftq.pair_energy(x, 0.5, method), rel=1e-11)
    forces = pysoftq.force(there, 0.5, 256)
    assert (forces.device.type, str(forces.dtype)) == (place.type, f"torch.{x.dtype}")
    np.testing.assert_array_equal(forces.cpu(), pysoftq.force(x, 0.5, 256))
    rho, expected = pysoftq.density(there, 256, 0.5, 3), pysoftq.density(x, 256, 0.5, 3)
    assert (rho.counts.device.type, rho.counts.dtype) == (place.type, torch.int64)
    np.testing.assert_array_equal(rho.counts.cpu(), expected.counts)
    np.testing.assert_array_equal(rho.midpoints, expected.midpoints)
    assert (rho.size, rho.bins, rho.spacing) == (expected.size, 256, expected.spacing)
    v = pysoftq.potential(rho, 0.5)
    assert (v.device.type, v.dtype) == (place.type, torch.float64)
    np.testing.assert_array_equal(v.cpu(), pysoftq.potential(expected, 0.5))
    for self_energy in (False, True):
        energy = pysoftq.mean_field_energy(there, 0.5, 256, self_energy)
        expected_energy = pysoftq.mean_field_energy(x, 0.5, 256, self_energy)
        assert energy == pytest.approx(expected_energy, rel=1e-12)


def test_front_ends_refuse_the_same(place):
    with pytest.raises(TypeError, match=r"floating dtype, got torch\.int64"):
        pysoftq.force(torch.arange(3, device=place), 0.5)
    with pytest.raises(ValueError, match="1 of 2 weights are not finite"):
        pysoftq.density(torch.tensor([1.0, torch.nan], device=place))

    def rho(counts: Any, spacing: float = 0.1) -> pysoftq.Density:
        return pysoftq.Density(torch.tensor(counts, device=place), 0.0, 1.0, spacing, 5)

    for counts, message in [
        ([1, -1], "must not be negative"),
        ([2**31], "less than"),
        ([2**30, 2**30], "less than"),
        ([], "integers|at least one bin"),
        ([[1]], "at least one bin"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            pysoftq.potential(rho(counts), 0.5)
    for counts in ([0.5], [True], [1j]):
        with pytest.raises(TypeError, match="counts must be integers"):
            pysoftq.potential(rho(counts), 0.5)
    with pytest.raises(ValueError, match="spacing"):
        pysoftq.potential(rho([1], -1.0), 0.5)


class Foreign:
    """An array of another library on a GPU, as DLPack sees it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def test_arrays_of_other_libraries(place, monkeypatch):
    if place.type == "cuda":
        pytest.skip("CuPy's own test follows")
    monkeypatch.setattr("torch.utils.dlpack.from_dlpack", lambda array: array.tensor)
    theta = Foreign(torch.from_numpy(THETA).view(50, 60))
    # A library that has no from_dlpack gets tensors.
    assert isinstance(pysoftq.force(theta, 0.5), torch.Tensor)
    library = ModuleType("foreign")
    library.from_dlpack = Foreign
    monkeypatch.setitem(sys.modules, "foreign", library)
    monkeypatch.setattr(Foreign, "__module__", "foreign.core")
    rho = pysoftq.density(theta)
    results = [pysoftq.force(theta, 0.5), pysoftq.pair_force(theta, 0.5), rho.counts]
    results.append(pysoftq.potential(rho, 0.5))
    expected_rho = pysoftq.density(THETA)
    expected = [pysoftq.force(THETA, 0.5), pysoftq.pair_force(THETA, 0.5), expected_rho.counts]
    expected.append(pysoftq.potential(expected_rho, 0.5))
    for result, values in zip(results, expected, strict=True):
        assert isinstance(result, Foreign)
        np.testing.assert_array_equal(result.tensor.numpy().ravel(), values)
    assert results[0].shape == (50, 60)
    assert pysoftq.pair_energy(theta, 0.5) == pytest.approx(pysoftq.pair_energy(THETA, 0.5))


def test_arrays_with_the_cuda_array_interface(place, monkeypatch):
    if place.type == "cuda":
        pytest.skip("CuPy's own test follows")

    class Numba:
        __cuda_array_interface__ = "as torch reads it"
        shape = THETA.shape

    monkeypatch.setattr(torch, "as_tensor", lambda array, device: torch.from_numpy(THETA))
    np.testing.assert_array_equal(pysoftq.force(Numba(), 0.5), pysoftq.force(THETA, 0.5))


def test_arrays_of_other_libraries_on_the_cpu_are_refused():
    class OnTheCpu(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    with pytest.raises(TypeError, match="NumPy array or a torch tensor, got OnTheCpu"):
        pysoftq.force(OnTheCpu(torch.ones(3)), 0.5)


@pytest.mark.gpu
def test_cupy():
    cupy = pytest.importorskip("cupy")
    theta = cupy.asarray(THETA)
    values = pysoftq.force(theta, 0.5)
    assert isinstance(values, cupy.ndarray)
    np.testing.assert_array_equal(values.get(), pysoftq.force(THETA, 0.5))
    rho = pysoftq.density(theta)
    assert isinstance(pysoftq.potential(rho, 0.5), cupy.ndarray)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 6, 3)  # of one channel, every order of memory is the same
        self.fc = nn.Linear(96, 5)


def gradients_of(net: nn.Module, seed: int) -> None:
    """Gradients that do not depend on the device's arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(values)


def train(net: nn.Module, steps: int, before_step=lambda softq, step: None) -> SoftQuantizer:
    softq = SoftQuantizer(net, h=0.1, fraction=0.6, seed=5)
    # Powers of two: with FMA or without, the update is the same.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.125)
    softq.attach(optimizer)
    for step in range(steps):
        gradients_of(net, step)
        before_step(softq, step)
        optimizer.step()
    softq.detach()
    return softq


@pytest.fixture
def expected() -> tuple[Net, SoftQuantizer]:
    """A network trained by the core, before anything stands for another device."""
    net = Net()
    return net, train(net, 6)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x.cpu(), y.cpu())


def assert_same_gradients(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x.grad.cpu(), y.grad.cpu())


def test_training(expected, place):
    net = Net().to(place)
    softq = train(net, 6)
    assert_same(net, expected[0])
    assert softq.state_dict() == expected[1].state_dict()
    energy, other = softq.energy(), expected[1].energy()
    assert energy.total == pytest.approx(other.total, rel=1e-9)
    assert softq.finalize(4, 3, "count") == expected[1].finalize(4, 3, "count")
    assert_same(net, expected[0])
    assert all(parameter.device.type == place.type for parameter in net.parameters())


def test_channels_last(place):
    net = Net().to(place, memory_format=torch.channels_last)
    other = Net()
    for model in (net, other):
        gradients_of(model, 0)
        SoftQuantizer(model, h=0.1).add_force_()
    assert net.conv.weight.grad.is_contiguous(memory_format=torch.channels_last)
    assert_same_gradients(net, other)


@pytest.mark.devices("core", "plain", "cuda emulated", "cuda")
def test_a_model_that_moves_and_changes(place):
    net = Net()
    softq = SoftQuantizer(net, h=0.1, fraction=0.5)
    changes = [
        lambda net: net.to(place),
        lambda net: net.double(),
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.bfloat16(),
        lambda net: net.cpu(),
        lambda net: net.float(),
    ]
    for step, change in enumerate(changes):
        change(net)
        fresh = copy.deepcopy(net).cpu()
        reference = SoftQuantizer(fresh)
        reference.load_state_dict(softq.state_dict())
        for model, coupling in ((net, softq), (fresh, reference)):
            gradients_of(model, step)
            coupling.add_force_()
        assert_same_gradients(net, fresh)


def test_a_refused_step_is_reported_by_check(place):
    net = Net().to(place)
    softq = SoftQuantizer(net, h=0.1)
    gradients_of(net, 0)
    before = [parameter.grad.clone() for parameter in net.parameters()]
    softq.check()  # nothing yet
    with torch.no_grad():
        net.fc.weight[0, :3] = torch.nan
    softq.add_force_()
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)
    with pytest.raises(ValueError, match=r"layer 'fc\.weight': 3 of 480 weights are not finite"):
        softq.check()
    softq.check()
    # A model that moves in between takes along what is to be said.
    softq.add_force_()
    net.double()
    gradients_of(net, 1)
    with pytest.raises(ValueError, match=r"layer 'fc\.weight': 3 of 480"):
        softq.add_force_()


def test_gradients_in_another_order(place):
    net, other = Net().to(place), Net()
    gradients_of(net, 0)
    gradients_of(other, 0)
    net.fc.weight.grad = net.fc.weight.grad.T.contiguous().T
    net.conv.weight.grad = torch.cat([net.conv.weight.grad] * 2, 1)[:, :2]
    for model in (net, other):
        SoftQuantizer(model, h=0.1).add_force_()
    assert_same_gradients(net, other)
    assert net.fc.weight.grad.T.is_contiguous()


def test_steps_that_were_replayed(place):
    def before_step(softq: SoftQuantizer, step: int) -> None:
        if step == 2:
            softq.step = 17
            softq.fraction = 0.3
        if step == 4:
            softq.advance(5)

    net = Net().to(place)
    softq = train(net, 6, before_step)
    assert softq.step == softq.state_dict()["step"] == 17 + 5 + 4
    with pytest.raises(ValueError, match="replays must be an integer from 0"):
        softq.advance(-1)
    with pytest.raises(ValueError, match="step must be an integer from 0"):
        softq.step = 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not backends.has_cuda(), reason="built without CUDA")
def test_graphs_draw_the_samples_of_ordinary_steps():
    def run(graphed: bool) -> Net:
        net = Net().cuda()
        softq = SoftQuantizer(net, h=0.1, fraction=0.5)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        softq.add_force_()
        if not graphed:
            for step in range(6):
                softq.fraction = 0.5 if step < 3 else 0.8
                softq.add_force_()
            return net
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            softq.add_force_()
        assert softq.step == 1
        for step in range(6):
            softq.fraction = 0.5 if step < 3 else 0.8
            graph.replay()
            softq.advance()
        assert softq.step == 7
        return net

    assert_same_gradients(run(graphed=False), run(graphed=True))


def test_copies_of_a_coupling_in_use(place):
    net = Net().to(place)
    softq = SoftQuantizer(net, h=0.1)
    gradients_of(net, 0)
    softq.add_force_()
    other = copy.deepcopy(softq)
    theirs = [layer.parameter for layer in other.layers]
    for parameter in theirs:
        parameter.grad = torch.zeros_like(parameter)
    before = net.fc.weight.grad.clone()
    other.add_force_()
    assert torch.equal(net.fc.weight.grad, before)
    assert theirs[1].grad.any()


def test_a_dtype_that_cannot_be_computed_with(place):
    net = Net().to(place)
    softq = SoftQuantizer(net, h=0.1)
    net.fc.weight.data = net.fc.weight.data.to(torch.float8_e4m3fn)
    net.fc.weight.grad = torch.zeros_like(net.fc.weight)
    with pytest.raises(TypeError, match=r"'fc\.weight' has become torch\.float8_e4m3fn; expected"):
        softq.add_force_()


def test_loss_and_coupling_together(place):
    net = Net().to(place)
    softq = SoftQuantizer(net, h=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    softq.attach(optimizer)
    images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1)).to(place)
    for _ in range(3):
        optimizer.zero_grad()
        net.fc(F.relu(net.conv(images)).flatten(1)).square().mean().backward()
        optimizer.step()
    softq.check()
    assert softq.step == 3
