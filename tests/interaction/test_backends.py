"""Every backend against the others: the core, plain torch and, where there is a device, CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from devices import Device
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import pysoftq
from pysoftq.interaction import backends
from pysoftq.interaction.backends import core, plain
from pysoftq.interaction.layers import CoupledLayer
from pysoftq.interaction.scales import Segments

GAUSSIAN = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WIDTHS = [1e-4, 0.01, 0.5, 3.0, 1e6]
STATES = {
    "Gaussian": GAUSSIAN,
    "clusters": np.round(GAUSSIAN) + 1e-3 * np.roll(GAUSSIAN, 1),
    "ties": np.round(GAUSSIAN * 8) / 8,
    "a point": np.full(50, 0.3, dtype=np.float32),
    "hardly a range": np.array([1e-45, 0, 1e-45, 0], dtype=np.float32),
    "one": np.array([0.7], dtype=np.float32),
    "none": np.zeros(0, dtype=np.float32),
}

states = pytest.mark.parametrize("state", STATES.values(), ids=STATES)
pytestmark = pytest.mark.devices("plain", "cuda emulated", "plain on cuda", "cuda")
hostile = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 60),
    elements=st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-1, 1, width=32),
)


def wide(tensor: torch.Tensor) -> np.ndarray:
    """The weights as the core is given them."""
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).cpu().numpy()


@states
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [1, 7, 256, 2**14])
def test_density(device, state, dtype, bins):
    theta = device.put(state).to(dtype)
    x = wide(theta)
    for fraction, seed in [(1.0, 0), (0.37, 2**64 - 1), (1e-12, 3)]:
        counts, *numbers = device.backend.density(theta, bins, fraction, seed)
        expected, *expected_numbers = core.density(x, bins, fraction, seed)
        assert counts.device.type == device.name
        assert counts.dtype == torch.int64
        np.testing.assert_array_equal(counts.cpu(), expected)
        assert numbers == expected_numbers
    if x.size:
        counts = device.backend.density(theta, bins, 1.0, 0)[0]
        index = oracle.bin_index(x, bins)
        np.testing.assert_array_equal(counts.cpu(), np.bincount(index, minlength=bins))


@given(theta=hostile, bins=st.integers(1, 300))
def test_density_and_force_of_hostile_arrays(device, theta, bins):
    tensor = device.put(theta)
    counts, *numbers = device.backend.density(tensor, bins, 0.7, 5)
    expected, *expected_numbers = core.density(theta, bins, 0.7, 5)
    np.testing.assert_array_equal(counts.cpu(), expected)
    assert numbers == expected_numbers
    for width in (1e-3, 0.5, 1e30):
        values = device.backend.force(tensor, width, bins, fft=False)
        np.testing.assert_array_equal(values.cpu(), core.force(theta, width, bins, fft=False))


@states
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bins", [1, 64, 1000])
def test_potential_force_table_and_mean_field_energy(device, state, width, bins):
    counts, _, _, spacing = core.density(state, bins, 1.0, 0)
    there = device.put(counts)
    exact = oracle.potential(counts, spacing, width)
    bound = 1e-12 * (np.abs(exact).max() + width)
    for fft in (False, True):
        values = device.backend.potential(there, spacing, width, fft)
        assert values.dtype == torch.float64
        assert values.device.type == device.name
        np.testing.assert_allclose(values.cpu(), exact, rtol=0, atol=bound)
    scan = device.backend.potential(there, spacing, width, fft=False)
    np.testing.assert_array_equal(scan.cpu(), core.potential(counts, spacing, width, fft=False))
    table = device.backend.force_table(there, spacing, width, fft=False)
    np.testing.assert_array_equal(table.cpu(), core.force_table(counts, spacing, width, fft=False))
    energy = device.backend.mean_field_energy(there, spacing, width)
    expected = core.mean_field_energy(counts, spacing, width)
    assert energy == pytest.approx(expected, rel=1e-12, abs=1e-12 * width)


@given(
    spacing=st.floats(1e-300, 1e300),
    bins=st.integers(1, 40),
    reach=st.integers(1, 41) | st.floats(1e-3, 50),
    steps=st.integers(-3, 3),
)
def test_the_well_s_edge_falls_on_the_same_bin(device, spacing, bins, reach, steps):
    width = reach * spacing
    for _ in range(abs(steps)):
        width = float(np.nextafter(width, np.inf * steps))
    counts = np.arange(1, bins + 1)
    values = device.backend.potential(device.put(counts), spacing, width, fft=False)
    np.testing.assert_array_equal(values.cpu(), core.potential(counts, spacing, width, fft=False))


@states
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_force(device, state, dtype, width):
    theta = device.put(state).to(dtype)
    x = wide(theta)
    for bins in (1, 64, 1000):
        values = device.backend.force(theta, width, bins, fft=False)
        assert values.device.type == device.name
        np.testing.assert_array_equal(values.cpu(), core.force(x, width, bins, fft=False))
        assert str(values.dtype) == f"torch.{x.dtype}"
        fft = core.force(x, width, bins, fft=True)
        spacing = core.density(x, bins, 1.0, 0)[-1]
        bound = 1e-11 * x.size * width / spacing if spacing else 0  # of the potential's difference
        values = device.backend.force(theta, width, bins, fft=True).cpu().double()
        np.testing.assert_allclose(values, fft.astype(np.float64), rtol=1e-6, atol=bound)


@states
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direct", [False, True])
def test_pairs(device, state, dtype, direct):
    theta = device.put(state[:700]).to(dtype)
    x = wide(theta)
    for width in WIDTHS:
        forces = device.backend.pair_force(theta, width, direct)
        assert forces.dtype == torch.int64
        assert forces.device.type == device.name
        np.testing.assert_array_equal(forces.cpu(), oracle.pair_force(x, width))
        energy = device.backend.pair_energy(theta, width, direct)
        assert energy == pytest.approx(oracle.pair_energy(x, width), rel=1e-9, abs=1e-12)


@given(theta=hostile, width=st.floats(1e-3, 1e30))
def test_pair_force_of_hostile_arrays(device, theta, width):
    forces = device.backend.pair_force(device.put(theta), width, direct=False)
    np.testing.assert_array_equal(forces.cpu(), core.pair_force(theta, width, direct=False))


def test_many_weights_are_the_same_in_tiles(device):
    theta = device.put(np.tile(GAUSSIAN, 2))
    np.testing.assert_array_equal(
        device.backend.pair_force(theta, 0.5, direct=True).cpu(),
        device.backend.pair_force(theta, 0.5, direct=False).cpu(),
    )
    direct = device.backend.pair_energy(theta, 0.5, direct=True)
    assert direct == pytest.approx(device.backend.pair_energy(theta, 0.5, direct=False), rel=1e-11)


UNFIT = {
    "NaN": np.array([1.0, np.nan, 2.0, np.nan]),
    "inf": np.array([1.0, np.inf, -np.inf], dtype=np.float32),
    "range": np.array([-3e38, 3e38], dtype=np.float32),
    "double range": np.array([-1.5e308, 1.5e308]),
}


@pytest.mark.parametrize("theta", UNFIT.values(), ids=UNFIT)
def test_unfit_weights_are_refused_in_the_same_words(device, theta):
    there = device.put(theta)
    calls = [lambda b, x: b.density(x, 8, 1.0, 0), lambda b, x: b.force(x, 0.5, 8, fft=False)]
    if not np.isfinite(theta).all():
        calls += [lambda b, x: b.pair_energy(x, 0.5, direct=False)]
        calls += [lambda b, x: b.pair_force(x, 0.5, direct=True)]
    for call in calls:
        with pytest.raises(ValueError, match="weights") as expected:
            call(core, theta)
        with pytest.raises(ValueError, match="weights") as error:
            call(device.backend, there)
        assert str(error.value) == str(expected.value)


def layers_of(thetas: list[torch.Tensor]) -> list[CoupledLayer]:
    return [
        CoupledLayer(f"layer {i}", theta.numel(), 1.0, 0.1 + 0.05 * i, 0.3 / (i + 1), theta)
        for i, theta in enumerate(thetas)
    ]


def model(seed: int, dtypes: list[torch.dtype]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [2, 1000, 17, 5000, 64]
    shapes = [(size,) for size, _ in zip(sizes * len(dtypes), dtypes * len(sizes), strict=True)]
    kinds = dtypes * len(sizes)
    thetas = [torch.randn(s, generator=generator).to(d) for s, d in zip(shapes, kinds, strict=True)]
    gradients = [torch.randn(theta.shape, generator=generator).to(theta.dtype) for theta in thetas]
    return thetas, gradients


@pytest.fixture(params=[False, True], ids=["scan", "fft"])
def fft(request: pytest.FixtureRequest) -> Iterator[bool]:
    return request.param


@pytest.fixture(params=[False, True], ids=["linear", "log"])
def log(request: pytest.FixtureRequest) -> Iterator[bool]:
    return request.param


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("bins", [1, 300, 2**14])
def test_coupling(device, fft, log, fraction, bins):
    thetas, gradients = model(1, DTYPES)
    here = core.Coupling(layers_of(thetas), range(len(thetas)), bins, fft, log)
    weights = [device.put(theta) for theta in thetas]
    there = device.backend.Coupling(layers_of(weights), range(len(thetas)), bins, fft, log)
    results = [device.put(gradient.clone()) for gradient in gradients]
    results[3], gradients[3] = None, None
    for step, scale in [(0, 1.0), (7, 1024.0)]:
        here.add_force(thetas, gradients, scale, fraction, 2**63 + 5, step)
        there.add_force(weights, results, scale, fraction, 2**63 + 5, step)
    there.check()
    for expected, result in zip(gradients, results, strict=True):
        if expected is None:
            continue
        if fft:  # rounded to the other side now and then
            torch.testing.assert_close(result.cpu(), expected, rtol=2e-2, atol=1e-2)
        else:
            assert torch.equal(result.cpu(), expected)


def test_coupling_draws_by_the_layer_s_place_in_the_model(device):
    thetas, _ = model(2, DTYPES[:1])
    weights = [device.put(theta) for theta in thetas]
    whole, alone = ([device.put(torch.zeros_like(theta)) for theta in thetas] for _ in range(2))
    layers = layers_of(weights)
    device.backend.Coupling(layers, range(5), 64, fft=False).add_force(
        weights, whole, 1.0, 0.5, 1, 2
    )
    device.backend.Coupling(layers[3:4], [3], 64, fft=False).add_force(
        weights[3:4], alone[3:4], 1.0, 0.5, 1, 2
    )
    assert torch.equal(whole[3], alone[3])
    assert whole[3].any()


def test_coupling_walks_through_memory_in_any_dense_order(device):
    theta = device.put(torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(3)))
    theta = theta.contiguous(memory_format=torch.channels_last)
    results = []
    for tensor in (theta, theta.permute(0, 2, 3, 1).reshape(-1)):
        gradient = torch.zeros_like(tensor)
        coupling = device.backend.Coupling(layers_of([tensor]), [0], 64, fft=False)
        coupling.add_force([tensor], [gradient], 1.0, 0.5, 4, 0)
        results.append(gradient)
    assert torch.equal(results[0].permute(0, 2, 3, 1).reshape(-1), results[1])


def test_a_refused_step_changes_no_gradient_and_is_reported_once(device):
    thetas, gradients = model(4, DTYPES)
    thetas[1][3:6] = float("nan")
    thetas[4][0], thetas[4][1] = -3e38, 3e38
    weights = [device.put(theta) for theta in thetas]
    results = [device.put(gradient.clone()) for gradient in gradients]
    coupling = device.backend.Coupling(layers_of(weights), range(len(thetas)), 64, fft=False)
    coupling.add_force(weights, results, 1.0, 1.0, 0, 0)
    for result, gradient in zip(results, gradients, strict=True):
        assert torch.equal(result.cpu(), gradient)
    here = core.Coupling(layers_of(thetas), range(len(thetas)), 64, fft=False)
    with pytest.raises(ValueError, match="layer 1': 3 of 1000 weights are not finite") as expected:
        here.add_force(thetas, gradients, 1.0, 1.0, 0, 0)
    coupling.add_force(weights, results, 1.0, 1.0, 0, 1)
    with pytest.raises(ValueError, match="layer 'layer 1'") as error:
        coupling.check()
    assert str(error.value) == str(expected.value)
    coupling.check()


# ------------------------------------------------------------------------------------- segments
SIZES = [1, 1, 2, 3, 63, 64, 65, 128, 129, 255, 576, 1000, 2047, 4096, 4097, 6000]


def hostile_weights(size: int, kind: int, generator: torch.Generator) -> torch.Tensor:
    theta = torch.randn(size, generator=generator, dtype=torch.float64)
    return [
        lambda: theta,
        theta.round,
        lambda: torch.full_like(theta, 0.3),
        lambda: theta**7,
        lambda: theta.clamp(-3, 3) * 2.0**-140,
        lambda: 1 + theta.clamp(-3, 3) * 1e-6,
        lambda: torch.cat([theta[:1], torch.zeros(size - 1).double()]),
    ][kind]()


def segmented(seed: int, dtype: torch.dtype, sizes: list[int]) -> CoupledLayer:
    """A layer whose segments have these sizes, in random order, of weights of all kinds.

    Between segments and around them are weights that are not coupled.
    """
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(sizes)[torch.randperm(len(sizes), generator=generator)]
    gap = torch.randint(3, (len(size),), generator=generator)
    begin = (size + gap).cumsum(0) - size
    theta = torch.randn(int(begin[-1] + size[-1]) + 2, generator=generator).double()
    for first, length in zip(begin.tolist(), size.tolist(), strict=True):
        kind = int(torch.randint(7, (), generator=generator))
        theta[first : first + length] = hostile_weights(length, kind, generator)
    scales = torch.rand(2, len(size), generator=generator, dtype=torch.float64)
    number = torch.arange(len(size))
    segments = Segments(len(size), number, begin, size, number.double(), *scales)
    name, weights = f"layer {seed}", theta.to(dtype)
    return CoupledLayer(name, len(theta), 1.0, 0.2, 0.5, nn.Parameter(weights), segments)


def on(device: Device, layers: list[CoupledLayer]) -> list[CoupledLayer]:
    """The same with their weights on the device, at odd addresses."""
    there = []
    for layer in layers:
        weights = device.put(torch.cat([torch.zeros_like(layer.weights[:1]), layer.weights]))
        there.append(replace(layer, parameter=nn.Parameter(weights[1:])))
    return there


def thetas_of(layers: list[CoupledLayer]) -> list[torch.Tensor]:
    return [layer.parameter.detach() for layer in layers]


def gradients_of(layers: list[CoupledLayer]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(layers))
    return [torch.randn(layer.size, generator=generator).to(layer.weights) for layer in layers]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [1, 100, 2**10, 2**14, 2**15])
def test_segments(device, dtype, bins, log):
    whole = layers_of([hostile_weights(5000, 0, torch.Generator()).to(dtype)])
    layers = [*whole, segmented(1, dtype, SIZES), segmented(2, dtype, [70, 3, 900] * 4)]
    there = on(device, layers)
    here = core.Coupling(layers, [4, 0, 2], bins, False, log)
    coupling = device.backend.Coupling(there, [4, 0, 2], bins, False, log)
    expected = gradients_of(layers)
    found = [device.put(gradient) for gradient in expected]
    for step, (scale, fraction) in enumerate([(1.0, 1.0), (64.0, 0.37)]):
        here.add_force(thetas_of(layers), expected, scale, fraction, 2**63 + 5, step)
        coupling.add_force(thetas_of(there), found, scale, fraction, 2**63 + 5, step)
    coupling.check()
    for result, gradient in zip(found, expected, strict=True):
        assert torch.equal(result.cpu(), gradient)
    energies = coupling.energies(thetas_of(there))
    wanted = here.energies(thetas_of(layers))
    if device.kind.startswith("cuda") and not log:
        assert energies == wanted
    assert energies == pytest.approx(wanted, rel=1e-10)


def test_large_segments(device, log):
    layers = [segmented(3, torch.float32, [70_000, 66_000, 65_535, 65_536, 5])]
    there = on(device, layers)
    here = core.Coupling(layers, [1], 2**12, False, log)
    coupling = device.backend.Coupling(there, [1], 2**12, False, log)
    expected = gradients_of(layers)
    found = [device.put(gradient) for gradient in expected]
    here.add_force(thetas_of(layers), expected, 1.0, 0.9, 3, 5)
    coupling.add_force(thetas_of(there), found, 1.0, 0.9, 3, 5)
    coupling.check()
    assert torch.equal(found[0].cpu(), expected[0])
    energy = coupling.energies(thetas_of(there))
    assert energy == pytest.approx(here.energies(thetas_of(layers)), rel=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("size", [1, 200, 5000])  # by a warp, by a block
def test_an_unfit_segment_leaves_all_gradients(device, value, size):
    layers = [segmented(seed, torch.float32, [2, 9, 300, size]) for seed in (4, 5)]
    place = int(layers[1].segments.begin[layers[1].segments.size == size])
    layers[1].weights.detach()[place] = value
    if value == 3e38 and size > 1:
        layers[1].weights.detach()[place + 1] = -3e38
    there = on(device, layers)
    coupling = device.backend.Coupling(there, [0, 1], 2**10, False)
    here = core.Coupling(layers, [0, 1], 2**10, False)
    found = [device.put(gradient) for gradient in gradients_of(layers)]
    expected = gradients_of(layers)
    coupling.add_force(thetas_of(there), found, 1.0, 1.0, 0, 0)
    if value == 3e38 and size == 1:  # a point is fine
        here.add_force(thetas_of(layers), expected, 1.0, 1.0, 0, 0)
        return coupling.check()
    for result, gradient in zip(found, expected, strict=True):
        assert torch.equal(result.cpu(), gradient)
    messages = []
    for call in (
        coupling.check,
        lambda: here.add_force(thetas_of(layers), expected, 1.0, 1.0, 0, 0),
        lambda: coupling.energies(thetas_of(there)),
    ):
        with pytest.raises(ValueError, match=r"^layer 'layer 5': segment \d of 4: ") as error:
            call()
        messages.append(str(error.value))
    assert len(set(messages)) == 1
    coupling.check()
    # The next step is as if nothing had happened.
    thetas_of(there)[1][place : place + size] = 0.5
    thetas_of(layers)[1][place : place + size] = 0.5
    here.add_force(thetas_of(layers), expected, 1.0, 1.0, 0, 1)
    coupling.add_force(thetas_of(there), found, 1.0, 1.0, 0, 1)
    coupling.check()
    for result, gradient in zip(found, expected, strict=True):
        assert torch.equal(result.cpu(), gradient)
    return None


def test_the_device_chooses(monkeypatch):
    monkeypatch.setattr(backends, "has_cuda", lambda: False)
    assert backends.of(np.zeros(3)) is core
    for kind, expected in {"cpu": core, "mps": plain, "cuda": plain, "xpu": plain}.items():
        assert backends.on_device(torch.device(kind)) is expected
        assert backends.of(SimpleNamespace(device=torch.device(kind))) is expected


def _unloadable() -> int:
    raise AssertionError("never called")


def _no_driver() -> int:
    raise RuntimeError("cudaGetDeviceCount failed: CUDA driver version is insufficient")


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., bool]]:
    """Asks `has_cuda` where torch has CUDA devices and the extension behaves as given."""

    def ask(
        device_count: Callable[[], int] | None, devices: int = 2, architectures: str = "75-real 90"
    ) -> bool:
        spec = None if device_count is None else "found"
        monkeypatch.setattr(backends, "find_spec", lambda name: spec)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.delattr(pysoftq, "_cuda", raising=False)
        if device_count is not _unloadable:
            extension = SimpleNamespace(device_count=device_count, architectures=architectures)
            monkeypatch.setattr(pysoftq, "_cuda", extension, raising=False)
        backends.has_cuda.cache_clear()
        return backends.has_cuda()

    yield ask
    monkeypatch.undo()
    backends.has_cuda.cache_clear()


def test_kernels_that_find_the_devices_are_used(with_kernels):
    assert with_kernels(lambda: 2)
    assert not with_kernels(None)
    assert not with_kernels(_no_driver, devices=0)  # nor is there anything to compute there


@pytest.mark.parametrize(
    ("device_count", "reason"),
    [
        (_no_driver, "CUDA driver version is insufficient .*rebuild pysoftq"),
        (lambda: 1, "they find 1 CUDA devices, torch 2"),
    ],
)
def test_torch_takes_the_place_of_kernels_that_cannot_be_used(with_kernels, device_count, reason):
    with pytest.warns(UserWarning, match=f"kernels cannot be used, torch .*: .*{reason}"):
        assert not with_kernels(device_count)
    # Once.
    assert backends.on_device(torch.device("cuda")) is plain


def test_torch_takes_the_place_of_kernels_that_cannot_be_loaded(with_kernels, monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "pysoftq._cuda":
                raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pysoftq._cuda", raising=False)
    with pytest.warns(UserWarning, match=r"libcudart\.so\.13: cannot open shared object file"):
        assert not with_kernels(_unloadable)


@pytest.mark.parametrize(
    ("architectures", "runs"),
    [
        *(("90-real", True), ("90", True), ("90-virtual", True), ("75-real 80", True)),
        *(("native", True), ("all-major", True), ("90a-real 90-real", True)),
        *(("75-real 80-real", False), ("91-real", False), ("100 120", False), ("75a", False)),
    ],
)
def test_kernels_are_used_where_their_architectures_run(with_kernels, architectures, runs):
    if runs:
        assert with_kernels(lambda: 2, architectures=architectures)
        return
    reason = rf"architectures {architectures}, .* 9\.\d .*CMAKE_CUDA_ARCHITECTURES=9\d"
    with pytest.warns(UserWarning, match=reason):
        assert not with_kernels(lambda: 2, architectures=architectures)
