"""How the CUDA core deals with the runtime: errors, memory, devices, graphs, libraries."""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import emulated_cuda
import numpy as np
import pytest
import torch
from devices import Device
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pysoftq
from pysoftq import SoftQuantizer
from pysoftq.coupling.devices import DeviceGroup
from pysoftq.interaction import backends
from pysoftq.interaction.backends import core
from pysoftq.interaction.layers import CoupledLayer, Scales
from pysoftq.interaction.pieces import Piece

BINS = 2**14

pytestmark = pytest.mark.devices("cuda emulated", "cuda")


@pytest.fixture
def cuda(emulated: ModuleType) -> ModuleType:
    """The backend on top of the emulated extension."""
    return emulated_cuda.backend()


def randn(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def layers_of(*thetas: Tensor) -> list[CoupledLayer]:
    return [
        CoupledLayer(f"layer {i}", theta.numel(), 1.0, 0.1 + 0.01 * i, 0.3 / (i + 1), theta)
        for i, theta in enumerate(thetas)
    ]


def coupling_of(
    cuda: Any, *thetas: Tensor, bins: int = BINS, fft: bool = False, log: bool = False
) -> Any:
    return cuda.Coupling(layers_of(*thetas), range(len(thetas)), bins, fft, log)


def step(coupling: Any, theta: Tensor, number: int = 0) -> Tensor:
    """The force of one step, half of the weights sampled."""
    gradient = torch.zeros_like(theta)
    coupling.add_force([theta], [gradient], 1.0, 0.5, 0, number)
    return gradient


def expected(theta: Tensor, number: int = 0, bins: int = BINS) -> Tensor:
    return step(core.Coupling(layers_of(theta), [0], bins, False), theta, number)


# -------------------------------------------------------------------------------- shared memory
USES = {
    "density": lambda cuda, theta: cuda.density(theta, 64, 1.0, 0),
    "pair energy": lambda cuda, theta: cuda.pair_energy(theta, 0.5, direct=False),
    "force": lambda cuda, theta: cuda.force(theta, 0.5, 16, False),
    "another coupling": lambda cuda, theta: step(coupling_of(cuda, theta, bins=1), theta),
}


@pytest.mark.parametrize("use", USES)
def test_uses_with_fewer_bins_do_not_forbid_those_with_more(device: Device, use: str) -> None:
    theta = randn(5000)
    there = device.put(theta)
    coupling = coupling_of(device.backend, there)
    USES[use](device.backend, there)
    assert torch.equal(step(coupling, there).cpu(), expected(theta))


# ------------------------------------------------------------------------- weights that change
VALUES = [-1e30, -3.0, 0.5, 3.0, 1e30, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("launch", [2, 3])  # of three: after the range, after the histogram
@pytest.mark.parametrize("value", VALUES)
def test_weights_may_change_during_a_step(
    cuda: Any, emulated: ModuleType, launch: int, value: float
) -> None:
    theta = randn(3000).clamp(-1, 1)
    before = theta.clone()
    coupling = coupling_of(cuda, theta, bins=256)
    emulated.write_before(launch, theta.data_ptr() + 4 * 7, value)
    gradient = torch.zeros_like(theta)
    coupling.add_force([theta], [gradient], 1.0, 1.0, 0, 0)
    assert torch.equal(theta[7], torch.tensor(value)) or math.isnan(value)
    # Its force is that of a bin, of whichever one it has been counted in.
    counts, low, high, spacing = core.density(before.numpy(), 256, 1.0, 0)
    former = min(int((before[7].item() - low) * 256 / (high - low)), 255)
    forces = []
    for k in range(256):
        counts[former] -= 1
        counts[k] += 1
        forces.append(torch.from_numpy(core.force_table(counts, spacing, 0.1, False) * 0.3))
        counts[k] -= 1
        counts[former] += 1
    assert gradient[7] in torch.cat(forces).float()


@given(
    st.floats(-1e3, 1e3, width=32),
    st.floats(0, 1e3, width=32),
    st.integers(1, 2**24),
    st.floats(width=32),
    st.booleans(),
)
def test_any_weight_has_a_bin(
    low: float, length: float, bins: int, weight: float, wide: bool
) -> None:
    bin_of = emulated_cuda.backend()._cuda.bin_of
    high = torch.tensor(low + length).item()
    found = bin_of(low, high, bins, weight, wide)
    assert 0 <= found < bins
    if high > low and abs(weight - low) * bins < 2**30 * (high - low):
        assert weight > low or found == 0
        assert weight < high or found == bins - 1


# --------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_the_order_of_threads_and_blocks_changes_nothing(
    cuda: Any, emulated: ModuleType, log: bool
) -> None:
    theta, gradient = randn(30_000), randn(30_000, seed=1)
    seen = []
    for seed in range(4):
        emulated.set_seed(seed)
        result = gradient.clone()
        coupling_of(cuda, theta, log=log).add_force([theta], [result], 1.0, 0.7, 1, 2)
        numbers = [cuda.pair_energy(theta[:6000], 0.2, direct) for direct in (False, True)]
        seen.append((result, torch.tensor(numbers, dtype=torch.float64)))
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            assert torch.equal(a, b)


def uses(cuda: Any) -> dict[str, Callable[[], Any]]:
    theta = randn(100)
    counts = torch.ones(64, dtype=torch.int64)

    def couple() -> None:
        coupling = coupling_of(cuda, theta, bins=64, fft=True)
        step(coupling, theta)
        coupling.check()

    return {
        "coupling": couple,
        "density": lambda: cuda.density(theta, 64, 1.0, 0),
        "pair energy": lambda: cuda.pair_energy(theta, 0.5, direct=False),
        "direct energy": lambda: cuda.pair_energy(theta, 0.5, direct=True),
        "pair force": lambda: cuda.pair_force(theta, 0.5, direct=False),
        "potential": lambda: cuda.potential(counts, 0.1, 0.5, fft=True),
        "mean field": lambda: cuda.mean_field_energy(counts, 0.1, 0.5),
    }


NAMES = list(uses(None))


@pytest.mark.parametrize("name", NAMES)
def test_failures_of_the_runtime_name_the_call_and_leave_nothing_behind(
    cuda: Any, emulated: ModuleType, name: str
) -> None:
    call = uses(cuda)[name]
    memory = emulated.live_allocations()
    messages = []
    for number in range(1, 100):
        emulated.fail(number)
        try:
            call()
        except RuntimeError as error:
            messages.append(str(error))
        else:
            break
        finally:
            emulated.fail(0)
        assert emulated.live_allocations() == memory, messages[-1]
        cuda.pair_energy(randn(100), 0.5, direct=False)  # CUB asks whether an error is left
    assert len(messages) > 3
    for message in messages:
        assert message.startswith(("cuda", "launch of ")), message
        assert " failed: " in message


@pytest.mark.parametrize("name", NAMES)
def test_without_memory_torchs_error_is_raised_and_nothing_is_left_behind(
    cuda: Any, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    call, block = uses(cuda)[name], cuda._block
    memory = emulated.live_allocations()
    for most in range(100):
        given_out = []

        def limited(size: int, device: torch.device, most=most, given_out=given_out) -> Any:
            if len(given_out) == most:
                raise torch.OutOfMemoryError(f"Tried to allocate {size} bytes.")
            given_out.append(size)
            return block(size, device)

        monkeypatch.setattr(cuda, "_block", limited)
        try:
            call()
        except torch.OutOfMemoryError:
            pass
        else:
            break
        assert emulated.live_allocations() == memory
    assert most > 1


def layer_on(extension: Any, size: int, place: Any) -> Any:
    """A coupling of one layer, without the backend."""
    rows = np.array([[0, 0, size, 0, size, 8, 0]])
    layers, scales = [("float32", 0, 0, 2**62, 0)], np.array([[0.1, 1.0]])
    return extension.Coupling(layers, rows, scales, (False, False), False, place)


def test_without_a_device_errors_name_the_call() -> None:
    extension = pytest.importorskip("pysoftq._cuda", exc_type=ModuleNotFoundError)
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(RuntimeError, match=r"^cudaGetDeviceCount failed: \w+"):
        extension.device_count()
    place = extension.Place(0, 0, lambda size: 0)
    with pytest.raises(RuntimeError, match=r"^cuda\w+ failed: \w+"):
        layer_on(extension, 3, place)


def test_nothing_is_copied_of_what_is_empty(cuda: Any, emulated: ModuleType) -> None:
    memory: list[Any] = []
    rows, scales = np.zeros((0, 7), dtype=np.int64), np.zeros((0, 2))
    emulated.Coupling([], rows, scales, (True, False), False, place_on(emulated, 0, memory)).check(
        0
    )
    nothing = torch.zeros(0)
    assert cuda.pair_energy(nothing, 0.5, direct=False) == 0
    assert cuda.pair_force(nothing, 0.5, direct=True).numel() == 0
    counts, *numbers = cuda.density(nothing, 8, 1.0, 0)
    assert not counts.any()
    assert numbers == [0, 0, 0]
    assert cuda.force(nothing, 0.5, 8, False).numel() == 0


# -------------------------------------------------------------------------------------- devices
def place_on(emulated: ModuleType, device: int, memory: list[Any]) -> Any:
    def allocate(size: int) -> int:
        memory.append(emulated.Allocation(size))
        address: int = memory[-1].data_ptr()
        return address

    return emulated.Place(device, 0, allocate)


def test_only_the_device_of_the_weights_is_used(emulated: ModuleType) -> None:
    memory: list[Any] = []
    theta, gradient = randn(100), torch.zeros(100)
    for device in (1, 2, 0):
        emulated.set_devices(3)
        place = place_on(emulated, device, memory)
        coupling = layer_on(emulated, 100, place)
        control = emulated.Control(1.0, 1.0, 0, 0)
        coupling.add_force([(theta.data_ptr(), gradient.data_ptr(), True)], control, 0)
        coupling.check(0)
        assert emulated.contexts() == [device]
    # The one in use before is the current one again.
    emulated.set_devices(3)
    for device in (0, 1):
        place = place_on(emulated, device, memory)
        emulated.pair_energy(theta.data_ptr(), 100, "float32", 0.5, False, place)
    assert emulated.contexts() == [0, 1]
    assert emulated.current_device() == 0


# --------------------------------------------------------------------------------------- memory
def test_memory_is_kept_for_the_streams_that_use_it(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Block:
        def __init__(self, size: int, device: torch.device) -> None:
            self._memory = cuda._cuda.Allocation(size)
            self.data_ptr = self._memory.data_ptr

        def record_stream(self, stream: str) -> None:
            told.append(stream)

    monkeypatch.setattr(cuda, "_block", Block)
    theta = randn(100)
    coupling = coupling_of(cuda, theta, bins=8)
    step(coupling, theta)
    assert not told  # it is that of the stream on which it was made
    monkeypatch.setattr(cuda, "_stream", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream 5")
    for _ in range(2):
        step(coupling, theta)
    assert set(told) == {"stream 5"}
    assert len(told) == len(coupling._memory._blocks)


@pytest.fixture
def on_gpu() -> ModuleType:
    """The backend, where there is a GPU."""
    if not backends.has_cuda():
        pytest.skip("built without CUDA")
    return backends.on_device(torch.device("cuda"))


@pytest.mark.gpu
def test_a_gpu_without_memory_left(on_gpu: Any) -> None:
    theta = randn(10**6).cuda()
    wanted = on_gpu.pair_energy(theta, 0.5, direct=False)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated() + (1 << 20)
    total = torch.cuda.get_device_properties(theta.device).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
            on_gpu.pair_energy(theta, 0.5, direct=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert on_gpu.pair_energy(theta, 0.5, direct=False) == wanted


@pytest.mark.gpu
@pytest.mark.parametrize("fft", [False, True], ids=["scan", "fft"])
def test_a_coupling_is_collected_while_a_graph_is_recorded_on_a_gpu(on_gpu: Any, fft: bool) -> None:
    theta = randn(5000).cuda()
    kept, other = [coupling_of(on_gpu, theta, fft=fft)], coupling_of(on_gpu, theta, fft=fft)
    step(kept[0], theta)
    gradient, wanted = torch.zeros_like(theta), step(other, theta)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept.clear()
        with pytest.raises(RuntimeError, match="the density cannot be recorded in a CUDA graph"):
            on_gpu.density(theta, 64, 1.0, 0)
        other.add_force([theta], [gradient], 1.0, 0.5, 0, 0)
    other.set(1.0, 0.5, 0, 0)
    graph.replay()
    assert torch.equal(gradient, wanted)


# --------------------------------------------------------------------------------------- graphs
@pytest.fixture
def record(emulated: ModuleType) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Records what a function queues on the default stream."""
    recording = []

    def recorded(work: Callable[[], Any]) -> Any:
        emulated.begin_capture(0)
        recording.append(True)
        work()
        recording.pop()
        return emulated.end_capture()

    yield recorded
    if recording:
        emulated.end_capture()


@pytest.mark.parametrize("fft", [False, True], ids=["scan", "fft"])
def test_the_device_counts_the_replays(cuda: Any, record: Any, fft: bool) -> None:
    theta = randn(5000)
    coupling = coupling_of(cuda, theta, bins=1024, fft=fft)
    here = core.Coupling(layers_of(theta), [0], 1024, fft)
    gradient = torch.zeros_like(theta)
    assert not coupling.recorded()
    graph = record(lambda: coupling.add_force([theta], [gradient], 9.0, 0.9, 9, 9))
    assert not gradient.any()  # nothing is done while it is recorded
    coupling.set(scale=2.0, fraction=0.4, seed=6, step=11)
    wanted = torch.zeros_like(theta)
    for number in range(11, 14):
        here.add_force([theta], [wanted], 2.0, 0.4, 6, number)
        graph.replay()
        torch.testing.assert_close(gradient, wanted, rtol=1e-5 if fft else 0, atol=1e-4 * fft)
    assert wanted.count_nonzero() > 4000


@pytest.mark.parametrize("mixed", [False, True])
def test_the_device_counts_the_replays_of_segments(
    cuda: Any, emulated: ModuleType, record: Any, mixed: bool
) -> None:
    thetas = [randn(6000).view(30, 200), randn(5000)]
    scales = Scales(h=0.7, w=0.4, alpha=0.5)
    segments = CoupledLayer.measure("w", nn.Parameter(thetas[0]), scales, "channel")
    assert segments is not None
    coupled = [segments, *(layers_of(thetas[1]) if mixed else [])]
    thetas = thetas[: len(coupled)]
    coupling, here = (
        backend.Coupling(coupled, range(len(coupled)), 1024, False) for backend in (cuda, core)
    )
    gradients, wanted = ([torch.zeros_like(theta) for theta in thetas] for _ in range(2))
    graph = record(lambda: coupling.add_force(thetas, gradients, 9.0, 0.9, 9, 9))
    coupling.set(scale=2.0, fraction=0.4, seed=6, step=11)
    for number in range(11, 14):
        here.add_force(thetas, wanted, 2.0, 0.4, 6, number)
        graph.replay()
        assert all(map(torch.equal, gradients, wanted))
    # A refused replay changes nothing, and takes its number.
    former = thetas[0][3, 4].clone()
    thetas[0][3, 4] = torch.nan
    graph.replay()
    assert all(map(torch.equal, gradients, wanted))
    thetas[0][3, 4] = former
    graph.replay()
    here.add_force(thetas, wanted, 2.0, 0.4, 6, 15)
    assert all(map(torch.equal, gradients, wanted))
    with pytest.raises(ValueError, match="segment 3 of 30: 1 of 200 weights are not finite"):
        coupling.check()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("size", [40, 700])
def test_weights_of_segments_may_change_during_a_step(
    cuda: Any, emulated: ModuleType, size: int, value: float
) -> None:
    theta = randn(5 * size).view(5, size).clamp(-1, 1)
    scales = Scales(h=0.7, w=0.4, alpha=0.5)
    layer = CoupledLayer.measure("w", nn.Parameter(theta), scales, "channel")
    assert layer is not None
    coupling = cuda.Coupling([layer], [0], 2**14, False)
    gradient, wanted = torch.zeros_like(theta), torch.zeros_like(theta)
    core.Coupling([layer], [0], 2**14, False).add_force([theta], [wanted], 1.0, 1.0, 0, 0)
    emulated.write_before(2, theta[2].data_ptr() + 4 * 7, value)
    coupling.add_force([theta], [gradient], 1.0, 1.0, 0, 0)
    # Of another segment no weight notices, and within this one by one weight's pull at most.
    others = [0, 1, 3, 4]
    assert torch.equal(gradient[others], wanted[others])
    pull = layer.segments.strength[2] if layer.segments is not None else 0
    assert ((gradient - wanted)[2].abs() <= 2.01 * pull).sum() >= size - 1
    assert gradient.isfinite().all()


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("kind", ["segments", "pieces"])
def test_the_order_of_threads_and_blocks_changes_nothing_for(
    cuda: Any, emulated: ModuleType, kind: str, log: bool
) -> None:
    theta = randn(12_000).view(30, 400)
    scales = Scales(h=0.7, w=0.4, alpha=0.5)
    layer = CoupledLayer.measure("w", nn.Parameter(theta), scales, "channel")
    assert layer is not None
    ranks: Any = SimpleNamespace(maximum=lambda values: values)
    if kind == "pieces":
        piece = Piece(0, 30, 0, 400, 900, 27_000, False, True, ranks)
        layer = replace(layer, piece=piece)
    seen = []
    for seed in range(3):
        emulated.set_seed(seed)
        coupling = cuda.Coupling([layer], [0], 2**14, False, log)
        gradient = torch.zeros_like(theta)
        if kind == "pieces":
            extremes = coupling.extremes([theta], [gradient])
            counts = coupling.counts([theta], extremes, 0.5, 3, 4)
            coupling.add_force([theta], [gradient], 1.0, 0.5, 3, 4)
            coupling.add_shared_force([theta], [gradient], extremes, counts, 1.0, 0.5)
        else:
            coupling.add_force([theta], [gradient], 1.0, 0.5, 3, 4)
        coupling.check()
        seen.append(gradient)
    assert seen[0].any()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


REFUSED = {
    "the first step of a coupling": lambda cuda, _: coupling_of(cuda, randn(50), bins=8),
    "a check of the coupling": lambda _, coupling: coupling.check(),
    "a new fraction or step of the coupling": lambda _, coupling: coupling.set(1.0, 1.0, 0, 0),
    "the density": lambda cuda, _: cuda.density(randn(50), 8, 1.0, 0),
    "the interaction of all pairs": lambda cuda, _: cuda.pair_force(randn(50), 0.5, direct=True),
    "the potential by method 'fft'": lambda cuda, _: cuda.potential(
        torch.ones(8, dtype=torch.int64), 0.1, 0.5, fft=True
    ),
    "the mean-field energy": lambda cuda, _: cuda.mean_field_energy(
        torch.ones(8, dtype=torch.int64), 0.1, 0.5
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_waiting_calls_are_refused_and_leave_the_recording_valid(
    cuda: Any, record: Any, what: str
) -> None:
    theta = randn(50)
    coupling = coupling_of(cuda, theta, bins=8)

    def work() -> None:
        assert coupling.recorded()
        with pytest.raises(RuntimeError, match=f"^{what} cannot be recorded in a CUDA graph: do"):
            REFUSED[what](cuda, coupling)

    record(work).replay()


@pytest.mark.parametrize("fft", [False, True], ids=["scan", "fft"])
def test_a_coupling_may_be_collected_while_a_graph_is_recorded(
    cuda: Any, record: Any, emulated: ModuleType, fft: bool
) -> None:
    memory = emulated.live_allocations()
    theta = randn(50)
    kept = [coupling_of(cuda, theta, bins=8, fft=fft)]
    step(kept[0], theta)
    record(kept.clear)
    assert emulated.live_allocations() == memory


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 30), nn.Linear(30, 10)
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def forces(self) -> list[Tensor]:
        found = [self.a.weight.grad.clone(), self.b.weight.grad.clone()]
        for parameter in self.parameters():
            parameter.grad.zero_()
        return found


def assert_all_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def net(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setattr(backends, "on_device", lambda device: cuda)
    torch.manual_seed(0)
    return Net()


def test_a_graph_outlives_what_replaces_its_coupling(
    net: Net, record: Any, emulated: ModuleType
) -> None:
    memory = emulated.live_allocations()
    softq = SoftQuantizer(net, h=0.1, w=0.5)
    softq.add_force_()
    first = net.forces()
    assert all(force.any() for force in first)
    graph = record(softq.add_force_)
    assert softq.step == 1
    state = SoftQuantizer(net, h=0.1, w=0.5).state_dict()
    with pytest.warns(UserWarning, match="a CUDA graph has recorded .* record it again"):
        softq.load_state_dict(state)
    gc.collect()
    before = emulated.live_allocations()
    graph.replay()
    assert_all_equal(net.forces(), first)
    softq.add_force_()
    assert_all_equal(net.forces(), first)
    softq.step = 7  # the replays' too
    graph.replay()
    assert before > memory
    softq.check()
    del softq
    gc.collect()
    assert emulated.live_allocations() == memory


def test_a_graph_outlives_layers_that_have_moved(
    net: Net, record: Any, emulated: ModuleType
) -> None:
    softq = SoftQuantizer(net, h=0.1)
    softq.add_force_()
    forces = net.forces()
    former = [(parameter.data, parameter.grad.data) for parameter in net.parameters()]
    graph = record(softq.add_force_)
    net.double()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.warns(UserWarning, match="a CUDA graph has recorded .* record it again"):
        softq.add_force_()
    gc.collect()
    graph.replay()
    found = [gradient for theta, gradient in former if theta.dim() > 1]
    assert_all_equal(found, forces)


def test_layers_on_another_device_are_not_left_out_of_a_graph(
    net: Net, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    softq = SoftQuantizer(net, h=0.1)
    groups = [DeviceGroup([softq.layers[0]], [0], softq.bins, False, False)]
    monkeypatch.setattr(backends, "on_device", lambda device: core)
    groups.append(DeviceGroup([softq.layers[1]], [1], softq.bins, False, False))
    softq._groups[0, 1] = groups
    with pytest.raises(RuntimeError, match="records the coupling of layers on one device only"):
        record(softq.add_force_)
    assert not any(force.any() for force in net.forces())


# -------------------------------------------------------------------------------------- cuFFT
def test_batches_of_transforms_fit_into_memory(emulated: ModuleType) -> None:
    for rows in (1, 20, 33, 200):
        for bits in range(25):
            at_once = emulated.rows_at_once(rows, 2**bits)
            assert 1 <= at_once <= min(rows, 32)
            batches = -(-rows // at_once)
            assert at_once == -(-rows // batches)  # of equal size
            assert at_once == 1 or at_once * 64 * 2 ** (bits + 1) <= 2**29
    assert emulated.rows_at_once(200, BINS) == 29
    assert emulated.rows_at_once(200, 2**24) == 1


def test_layers_in_several_batches_of_transforms(cuda: Any) -> None:
    thetas = [randn(50 + i, seed=i) for i in range(37)]
    together = coupling_of(cuda, *thetas, bins=32, fft=True)
    gradients = [torch.zeros_like(theta) for theta in thetas]
    together.add_force(thetas, gradients, 1.0, 1.0, 0, 0)
    for layer, theta, gradient in zip(layers_of(*thetas), thetas, gradients, strict=True):
        alone, found = cuda.Coupling([layer], [0], 32, True), torch.zeros_like(theta)
        alone.add_force([theta], [found], 1.0, 1.0, 0, 0)
        assert torch.equal(gradient, found)
        assert found.any()


def test_a_library_that_is_loaded_comes_first(emulated: ModuleType, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("first.so", "second.so", "third.so")]
    for name in names[:2]:
        shutil.copy(pysoftq._core.__file__, name)
    ctypes.CDLL(names[1])
    assert emulated.open_library([names[2], names[0], names[1]]) == names[1]
    assert emulated.open_library([names[2], names[0]]) == names[0]
    with pytest.raises(RuntimeError) as error:
        emulated.open_library([names[2], "libnothing.so.9"])
    assert names[2] in str(error.value)
    assert "libnothing.so.9" in str(error.value)
