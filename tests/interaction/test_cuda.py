"""The CUDA core beyond the contract of all backends: on a device, and emulated on the CPU."""

from __future__ import annotations

from dataclasses import replace

import emulated_cuda
import numpy as np
import pytest
import torch
from devices import Device
from torch import nn

from pysoftq import SoftQuantizer
from pysoftq.interaction import backends
from pysoftq.interaction.backends import core
from pysoftq.interaction.layers import CoupledLayer, Scales

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BINS = 2**14


pytestmark = pytest.mark.devices("cuda emulated", "cuda")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers_of(thetas: list[torch.Tensor]) -> list[CoupledLayer]:
    return [
        CoupledLayer(f"layer {i}", theta.numel(), 1.0, 0.1 + 0.01 * i, 0.3 / (i + 1), theta)
        for i, theta in enumerate(thetas)
    ]


def assert_force_as_on_the_cpu(
    device: Device,
    thetas: list[torch.Tensor],
    gradients: list[torch.Tensor],
    *,
    there: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    bins: int = BINS,
    fraction: float = 1.0,
) -> None:
    """One step, bit for bit; `there` are tensors of the same values on the device."""
    pairs = there or [
        (device.put(t), device.put(g)) for t, g in zip(thetas, gradients, strict=True)
    ]
    weights, results = [t for t, _ in pairs], [g for _, g in pairs]
    expected = [gradient.clone() for gradient in gradients]
    indices = range(len(thetas))
    core.Coupling(layers_of(thetas), indices, bins, False).add_force(
        thetas, expected, 1.0, fraction, 3, 4
    )
    coupling = device.backend.Coupling(layers_of(weights), indices, bins, False)
    coupling.add_force(weights, results, 1.0, fraction, 3, 4)
    coupling.check()
    for i in indices:
        assert torch.equal(results[i].cpu(), expected[i]), f"layer {i}"


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_at_most_three_launches_and_no_allocation(emulated, log):
    thetas = [randn(size, seed=size) for size in (432, 2304, 9216, 36864, 640)]
    gradients = [torch.zeros_like(theta) for theta in thetas]
    coupling = emulated_cuda.backend().Coupling(layers_of(thetas), range(5), BINS, False, log)
    memory = emulated.live_allocations()
    before = emulated.launches()
    coupling.add_force(thetas, gradients, 1.0, 1.0, 0, 0)
    assert emulated.launches() - before <= 3
    assert emulated.live_allocations() == memory


def segmented(theta: torch.Tensor, granularity: str) -> CoupledLayer:
    scales = Scales(h=0.7, w=0.4, alpha=0.5)
    layer = CoupledLayer.measure(granularity, nn.Parameter(theta), scales, granularity)
    assert layer is not None
    return layer


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_at_most_two_launches_of_segments_and_four_with_layers(emulated, log):
    channels = [segmented(randn(2, 40 + i, seed=i), "channel") for i in range(128)]
    layers = [segmented(randn(30, 23), "group:7"), *layers_of([randn(5000)])]
    memory = emulated.live_allocations()
    for coupled, most in ((channels, 2), (layers, 4)):
        coupling = emulated_cuda.backend().Coupling(coupled, range(len(coupled)), BINS, False, log)
        thetas = [layer.weights.detach() for layer in coupled]
        gradients = [torch.zeros_like(theta) for theta in thetas]
        before, held = emulated.launches(), emulated.live_allocations()
        coupling.add_force(thetas, gradients, 1.0, 0.5, 0, 0)
        assert emulated.launches() - before == most
        assert emulated.live_allocations() == held
        assert all(gradient.any() for gradient in gradients)
        del coupling
    assert emulated.live_allocations() == memory


@pytest.mark.parametrize("number", [2000, pytest.param(100_000, marks=pytest.mark.gpu)])
def test_many_small_segments(number):
    device = Device.of("cuda emulated" if number == 2000 else "cuda")
    theta = randn(number // 4, 24)
    layers = [segmented(theta, "group:6") for _ in range(2)]
    expected, found = torch.zeros_like(theta), device.put(torch.zeros_like(theta))
    core.Coupling(layers, [0, 1], BINS, False).add_force(
        [theta, theta], [expected, None], 1.0, 0.5, 1, 2
    )
    weights = device.put(theta)
    there = [replace(layer, parameter=nn.Parameter(weights)) for layer in layers]
    coupling = device.backend.Coupling(there, [0, 1], BINS, False)
    coupling.add_force([weights, weights], [found, None], 1.0, 0.5, 1, 2)
    coupling.check()
    assert torch.equal(found.cpu(), expected)


def test_two_hundred_layers_of_segments(device):
    thetas = [randn(1 + i % 5, 2 + 37 * i % 90, seed=i) for i in range(200)]
    gradients = [randn(*theta.shape, seed=1) for theta in thetas]
    layers = [
        segmented(theta, ("channel", "layer", "group:9")[i % 3]) for i, theta in enumerate(thetas)
    ]
    expected = [gradient.clone() for gradient in gradients]
    core.Coupling(layers, range(200), 2**10, False).add_force(thetas, expected, 1.0, 0.5, 3, 4)
    weights = [device.put(theta) for theta in thetas]
    there = [
        replace(layer, parameter=nn.Parameter(w)) for layer, w in zip(layers, weights, strict=True)
    ]
    coupling = device.backend.Coupling(there, range(200), 2**10, False)
    results = [device.put(gradient) for gradient in gradients]
    coupling.add_force(weights, results, 1.0, 0.5, 3, 4)
    coupling.check()
    for i, (result, gradient) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(result.cpu(), gradient), f"layer {i}"


def test_two_hundred_layers(device):
    thetas = [randn(1 + 37 * i % 900, seed=i) for i in range(200)]
    thetas[130] = randn(9000)
    gradients = [randn(theta.numel(), seed=1) for theta in thetas]
    assert_force_as_on_the_cpu(device, thetas, gradients, bins=256, fraction=0.5)


@pytest.mark.parametrize("bins", [BINS, BINS + 1, 2**16 + 3])
@pytest.mark.parametrize("state", ["Gaussian", "clusters", "one bin", "a point"])
def test_many_chunks(device, state, bins):
    size = 150_001
    theta = {
        "Gaussian": lambda: randn(size),
        "clusters": lambda: randn(size).round() + 1e-4 * randn(size, seed=1),
        "one bin": lambda: torch.cat([torch.zeros(size - 2), torch.tensor([-1.0, 1.0])]),
        "a point": lambda: torch.full((size,), 0.3),
    }[state]()
    assert_force_as_on_the_cpu(device, [theta], [randn(size, seed=2)], bins=bins)
    counts, *numbers = device.backend.density(device.put(theta), bins, 0.3, 9)
    expected, *expected_numbers = core.density(theta.numpy(), bins, 0.3, 9)
    np.testing.assert_array_equal(counts.cpu(), expected)
    assert numbers == expected_numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 15, 16, 17, 33, 1000, 4099])
def test_addresses_that_are_not_aligned(device, dtype, size):
    thetas, gradients, there = [], [], []
    for offset in [(0, 0), (1, 1), (3, 3), (7, 7), (0, 1), (2, 5)]:
        pair = []
        for values, start in zip((randn(size), randn(size, seed=1)), offset, strict=True):
            memory = torch.full((size + 16,), 77.0, dtype=dtype, device=device.name)
            memory[start : start + size] = values
            pair.append(memory[start : start + size])
        thetas.append(pair[0].cpu().clone())
        gradients.append(pair[1].cpu().clone())
        there.append((pair[0], pair[1]))
    assert_force_as_on_the_cpu(device, thetas, gradients, there=there, bins=64)
    for theta, gradient in there:
        for view in (theta, gradient):
            start = view.storage_offset()
            memory = torch.as_strided(view, (size + 16,), (1,), 0)
            assert (memory[:start] == 77).all()
            assert (memory[start + size :] == 77).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_gradient(device, dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    theta = randn(2**16).to(dtype)
    expected = patterns.clone()
    layers = layers_of([theta])
    core.Coupling(layers, [0], BINS, False).add_force([theta], [expected], 1.0, 1.0, 0, 0)
    weights, result = device.put(theta), device.put(patterns)
    device.backend.Coupling(layers_of([weights]), [0], BINS, False).add_force(
        [weights], [result], 1.0, 1.0, 0, 0
    )
    result = result.cpu()
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result[~expected.isnan()], expected[~expected.isnan()])


def test_potential_of_many_bins(device):
    counts = torch.randint(50, (5000,), generator=torch.Generator().manual_seed(0))
    there = device.put(counts)
    for width in (0.05, 3.0, 1e3):
        values = device.backend.potential(there, 0.01, width, fft=False)
        np.testing.assert_array_equal(
            values.cpu(), core.potential(counts.numpy(), 0.01, width, fft=False)
        )
        energy = device.backend.mean_field_energy(there, 0.01, width)
        expected = core.mean_field_energy(counts.numpy(), 0.01, width)
        assert energy == pytest.approx(expected, rel=1e-13)


def test_pairs_over_many_chunks(device):
    for theta in (randn(20_000), randn(20_000).round(), torch.zeros(9000)):
        for width in (1e-5, 0.3, 100.0):
            forces = device.backend.pair_force(device.put(theta), width, direct=False)
            expected = core.pair_force(theta.numpy(), width, False)
            np.testing.assert_array_equal(forces.cpu(), expected)
            energy = device.backend.pair_energy(device.put(theta), width, direct=False)
            assert energy == pytest.approx(core.pair_energy(theta.numpy(), width, False), rel=1e-12)
            assert energy == device.backend.pair_energy(device.put(theta), width, direct=False)


def test_what_no_longer_fits_is_refused(device):
    theta = device.put(randn(50))
    coupling = device.backend.Coupling(layers_of([theta]), [0], 64, False)
    for wrong in (theta.half(), theta.to("meta")):
        with pytest.raises(ValueError, match=r"layer 'layer 0' was coupled as torch\.float32 on"):
            coupling.add_force([theta], [wrong], 1.0, 1.0, 0, 0)
    with pytest.raises(ValueError, match="zip"):
        coupling.add_force([theta, theta], [theta], 1.0, 1.0, 0, 0)
    huge = CoupledLayer("huge", 2**31, 1.0, 0.1, 1.0, theta)
    with pytest.raises(ValueError, match="a layer has at most 2147483647 weights, got 2147"):
        device.backend.Coupling([huge], [0], 64, False)


def test_the_most_weights_are_those_of_the_core(emulated):
    place = emulated.Place(0, 0, lambda size: 0)
    calls = [
        lambda n: emulated.pair_energy(0, n, "float32", 0.5, False, place),
        lambda n: emulated.pair_force(0, n, "float32", 0.5, True, 0, place),
        lambda n: emulated.density(0, n, "float32", 8, 1.0, 0, 0, place),
    ]
    for call in calls:
        for size in (2**31, 2**32 - 1, 2**40):
            with pytest.raises(
                ValueError, match=f"^a layer has at most 2147483647 weights, got {size}$"
            ):
                call(size)


def test_layers_may_be_skipped(device):
    thetas = [randn(5000, seed=i) for i in range(3)]
    weights = [device.put(theta) for theta in thetas]
    weights[1][7] = float("nan")  # without a gradient nobody looks at it
    coupling = device.backend.Coupling(layers_of(weights), range(3), BINS, False)
    for skipped in ({1}, {0, 1}, {0, 1, 2}):
        results = [None if i in skipped else torch.zeros_like(w) for i, w in enumerate(weights)]
        coupling.add_force(weights, results, 1.0, 1.0, 0, 0)
        coupling.check()
        assert all(result is None or result.any() for result in results)


# --------------------------------------------------------------------------- the public functions
@pytest.mark.parametrize("granularity", ["layer", "group:16"])
def test_soft_quantizer(device, granularity, monkeypatch):
    if device.name == "cpu":
        monkeypatch.setattr(backends, "on_device", lambda device: emulated_cuda.backend())
    options = {"h": 0.1, "fraction": 0.5, "seed": 4, "granularity": granularity}
    grown = []
    for name in ("cpu", device.name):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)).to(name)
        if len(grown) == 0:
            with monkeypatch.context() as patch:
                patch.setattr(backends, "on_device", lambda device: core)
                softq = SoftQuantizer(model, **options)
                trained(softq, model)
        else:
            softq = SoftQuantizer(model, **options)
            trained(softq, model)
        grown.append([p.detach().cpu() for p in model.parameters()])
    for a, b in zip(*grown, strict=True):
        assert torch.equal(a, b)


def trained(softq: SoftQuantizer, model: nn.Module) -> None:
    """A few steps whose gradients are the same on every device."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2**-4)
    softq.attach(optimizer)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = randn(*parameter.shape, seed=step).to(parameter.device)
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("fft", [False, True], ids=["scan", "fft"])
def test_replays_of_a_graph_are_steps(fft, log):
    if not backends.has_cuda():
        pytest.skip("built without CUDA")
    from pysoftq.interaction.backends import cuda

    thetas = [randn(size, seed=size).cuda() for size in (432, 36864, 300_000)]
    gradients, expected = ([torch.zeros_like(t) for t in thetas] for _ in range(2))
    coupling = cuda.Coupling(layers_of(thetas), range(3), BINS, fft, log)
    graph = torch.cuda.CUDAGraph()
    coupling.add_force(thetas, gradients, 1.0, 0.5, 3, 0)  # loads the kernels
    with torch.cuda.graph(graph):
        coupling.add_force(thetas, gradients, 1.0, 0.5, 3, 0)
    for gradient in gradients:
        gradient.zero_()
    coupling.set(1.0, 0.5, 3, 20)
    for _ in range(20, 25):
        graph.replay()
    other = cuda.Coupling(layers_of(thetas), range(3), BINS, fft, log)
    for step in range(20, 25):
        other.add_force(thetas, expected, 1.0, 0.5, 3, step)
    coupling.check()
    for a, b in zip(gradients, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_work_is_in_the_order_of_the_current_stream():
    if not backends.has_cuda():
        pytest.skip("built without CUDA")
    from pysoftq.interaction.backends import cuda

    theta = randn(2_000_000).cuda()
    gradient, expected = torch.zeros_like(theta), torch.zeros_like(theta)
    coupling = cuda.Coupling(layers_of([theta]), [0], BINS, False)
    coupling.add_force([2 * theta], [expected], 1.0, 1.0, 0, 0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the default stream would be far ahead
        theta.mul_(2)
        coupling.add_force([theta], [gradient], 1.0, 1.0, 0, 0)
        gradient.neg_()
    stream.synchronize()
    assert torch.equal(gradient, -expected)
