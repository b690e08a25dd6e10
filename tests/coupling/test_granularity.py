"""Channels and groups that interact with themselves alone: every backend, and the whole way."""

from __future__ import annotations

import copy
import io
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pysoftq import SoftQuantizer, density, identify, refine, unique
from pysoftq.clusters.clusters import Clusters, split
from pysoftq.clusters.merging import merge
from pysoftq.interaction import backends
from pysoftq.interaction.layers import CoupledLayer
from pysoftq.interaction.scales import Segments
from pysoftq.interaction.segment_table import segment_bins
from pysoftq.interaction.segments import segment_bounds
from pysoftq.interaction.weights import HostWeights

GRANULARITIES = ["channel", "group:7", "group:64"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BINS = 2**14


pytestmark = pytest.mark.devices("core", "plain", "cuda emulated", "plain on cuda", "cuda")


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of another scale in each slice."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.5, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def layer_of(theta: Tensor, granularity: str, name: str = "layer") -> CoupledLayer:
    measured = HostWeights(theta, segment_bounds(theta.shape, granularity))
    segments = Segments.measure(measured, h=0.3, w=0.5, alpha=0.66)
    return CoupledLayer(name, theta.numel(), 0.0, 0.0, 0.0, nn.Parameter(theta), segments)


def expected(
    layer: CoupledLayer, gradient: Tensor, fraction: float, seed: int, step: int, index: int
) -> Tensor:
    """The gradient with the force, by counting the pairs of midpoints segment by segment."""
    theta = layer.parameter.detach().cpu().reshape(-1)
    compute = torch.float64 if theta.dtype == torch.float64 else torch.float32
    out = gradient.cpu().reshape(-1).clone()
    key = oracle.splitmix64(oracle.splitmix64(seed, step), index)
    kept = np.array(
        [oracle.splitmix64(key, i) >> 32 < int(fraction * 2**32) for i in range(theta.numel())]
    )
    segments = layer.segments
    for begin, size, width, strength, bins in zip(
        segments.begin.tolist(),
        segments.size.tolist(),
        segments.width.tolist(),
        segments.strength.tolist(),
        segment_bins(segments.size, BINS).tolist(),
        strict=True,
    ):
        part = slice(begin, begin + size)
        x = theta[part].to(compute).numpy()
        bin_of = oracle.bin_index(x, bins)
        spacing = (float(x.max()) - float(x.min())) / bins
        apart = bin_of[:, None] - bin_of[kept[part]]
        inside = np.abs(apart) * spacing < width
        pull = strength / fraction * (np.sign(apart) * inside).sum(axis=1)
        total = out[part].to(compute) + torch.from_numpy(pull).to(compute)
        out[part] = total.to(out.dtype)
    return out.reshape(gradient.shape)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_each_segment_feels_the_pairs_of_its_own(device, granularity, dtype, fraction):
    backend, name = device.backend, device.name
    thetas = [weights(5, 3, 11, seed=1, dtype=dtype), weights(4, 50, seed=2, dtype=dtype)]
    gradients = [torch.randn(theta.shape).to(dtype) for theta in thetas]
    there = [layer_of(theta.to(name), granularity, f"layer {i}") for i, theta in enumerate(thetas)]
    results = [gradient.to(name).clone() for gradient in gradients]
    coupling = backend.Coupling(there, [6, 3], BINS, False)
    coupling.add_force([layer.parameter.detach() for layer in there], results, 1.0, fraction, 9, 2)
    coupling.check()
    for layer, gradient, result, index in zip(there, gradients, results, [6, 3], strict=True):
        assert torch.equal(result.cpu(), expected(layer, gradient, fraction, 9, 2, index))


def test_a_layer_without_a_gradient_is_left_out(device):
    backend, name = device.backend, device.name
    layers = [layer_of(weights(3, 40, seed=seed).to(name), "channel") for seed in range(3)]
    gradients = [torch.zeros(3, 40, device=name), None, torch.zeros(3, 40, device=name)]
    thetas = [layer.parameter.detach() for layer in layers]
    backend.Coupling(layers, range(3), BINS, False).add_force(thetas, gradients, 1.0, 1.0, 0, 0)
    for place in (0, 2):
        wanted = expected(layers[place], torch.zeros(3, 40), 1.0, 0, 0, place)
        assert torch.equal(gradients[place].cpu(), wanted)


def test_one_segment_of_many_weights_is_the_layer(device):
    backend, name = device.backend, device.name
    theta = weights(1, 3000).to(name)
    segments = layer_of(theta, "channel")
    width, strength = float(segments.segments.width), float(segments.segments.strength)
    whole = CoupledLayer("layer", 3000, 1.0, width, strength, segments.parameter)
    results = []
    for layer in (segments, whole):
        gradient = torch.zeros_like(theta)
        coupling = backend.Coupling([layer], [4], BINS, False)
        coupling.add_force([theta], [gradient], 8.0, 0.3, 1, 5)
        results.append(gradient)
    assert results[0].any()
    assert torch.equal(*results)


def stepped(coupling: backends.DeviceCoupling, thetas: list, gradients: list) -> None:
    coupling.add_force(thetas, gradients, 1.0, 1.0, 0, 0)
    coupling.check()


def test_a_refused_segment_leaves_all_gradients_and_is_named(device):
    backend, name = device.backend, device.name
    thetas = [weights(4, 30).to(name), weights(6, 20, seed=3).to(name)]
    layers = [layer_of(theta, "group:10", f"layer {i}") for i, theta in enumerate(thetas)]
    coupling = backend.Coupling(layers, [0, 1], BINS, False)
    bad = thetas[1].clone()
    bad[2, 5:8], bad[4, 19] = torch.nan, torch.inf
    gradients = [torch.zeros_like(theta) for theta in thetas]
    wanted = (
        r"layer 'layer 1': segment 4 of 12: 3 of 10 weights are not finite \(NaN or inf\) "
        r"\(and 1 more of its segments\)$"
    )
    with pytest.raises(ValueError, match=wanted):
        stepped(coupling, [thetas[0], bad], gradients)
    assert not any(gradient.any() for gradient in gradients)
    wide = thetas[0].clone()
    wide[3, 0], wide[3, 1] = -3e38, 3e38
    with pytest.raises(ValueError, match=r"'layer 0': segment 9 of 12: the range .* is wider than"):
        stepped(coupling, [wide, thetas[1]], gradients)
    stepped(coupling, thetas, gradients)
    assert all(gradient.any() for gradient in gradients)


def test_thousands_of_segments_at_once(device):
    backend, name = device.backend, device.name
    theta = torch.randn(300, 30, generator=torch.Generator().manual_seed(0)).to(name)
    theta[::7] = theta[1]  # equal slices feel equal forces
    layer = layer_of(theta, "group:6")
    gradient = torch.zeros_like(theta)
    backend.Coupling([layer], [0], BINS, False).add_force([theta], [gradient], 1.0, 1.0, 0, 0)
    for row in (0, 3, 299):
        alone = layer_of(theta[row : row + 1], "group:6")
        wanted = expected(alone, torch.zeros(1, 30), 1.0, 0, 0, 0)
        assert torch.equal(gradient[row].cpu(), wanted[0])
    assert torch.equal(gradient[0], gradient[7])


@pytest.mark.parametrize(
    ("size", "bins", "found"),
    [
        *((1, BINS, 256), (32, BINS, 256), (33, BINS, 512), (128, BINS, 1024), (576, BINS, 8192)),
        *((2048, BINS, BINS), (10**6, BINS, BINS), (576, 1000, 1000), (2**21, 2**24, 2**24)),
    ],
)
def test_bins_are_in_proportion_to_the_weights(size, bins, found):
    assert segment_bins(torch.tensor([size, size]), bins).tolist() == [found, found]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(24, 5)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def pulled(model: nn.Module, **options) -> dict[str, Tensor]:
    """The force alone on each weight."""
    softq = SoftQuantizer(model, h=0.3, **options)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    softq.add_force_()
    return {layer.name: layer.parameter.grad.clone() for layer in softq.layers}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scales_are_those_of_each_segment(net, granularity):
    softq = SoftQuantizer(net, h=0.2, w=0.4, alpha=0.7, granularity=granularity)
    assert softq.granularity == granularity
    for layer in softq.layers:
        flat = layer.parameter.detach().double().reshape(-1)
        bounds = segment_bounds(layer.parameter.shape, granularity).tolist()
        parts = [flat[a:b] for a, b in pairwise(bounds)]
        sigma = np.array([part.numpy().std() for part in parts])
        sizes = np.array([len(part) for part in parts])
        np.testing.assert_allclose(layer.segments.sigma, sigma, rtol=1e-12)
        np.testing.assert_allclose(layer.segments.width, 0.4 * sigma, rtol=1e-12)
        np.testing.assert_allclose(layer.segments.strength, 0.2 * sizes**-0.7, rtol=1e-12)
        assert layer.sigma == pytest.approx(np.average(sigma, weights=sizes))
        assert layer.strength == pytest.approx(np.average(0.2 * sizes**-0.7, weights=sizes))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("order", ["channels last", "transposed", "sliced", "gradient only"])
def test_segments_follow_the_indices_in_any_order_of_memory(net, granularity, order):
    wanted = pulled(copy.deepcopy(net), granularity=granularity)
    weight, fc = net.conv.weight, net.fc.weight
    if order == "channels last":
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    elif order == "transposed":
        fc.data = fc.data.t().contiguous().t()
    elif order == "sliced":
        fc.data = fc.data.repeat(1, 2)[:, :24]
    softq = SoftQuantizer(net, h=0.3, granularity=granularity)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if order == "gradient only":
        weight.grad = weight.grad.contiguous(memory_format=torch.channels_last)
    softq.add_force_()
    for layer in softq.layers:
        assert torch.equal(layer.parameter.grad, wanted[layer.name])


def test_a_model_may_change_its_order_of_memory_between_steps(net):
    softq = SoftQuantizer(net, h=0.3, granularity="group:5")
    for memory_format in (torch.contiguous_format, torch.channels_last) * 2:
        net.to(memory_format=memory_format)
        wanted = pulled(copy.deepcopy(net), granularity="group:5")
        net.conv.weight.grad = torch.zeros_like(net.conv.weight)
        softq.add_force_()
        assert torch.equal(net.conv.weight.grad, wanted["conv.weight"])


def test_degenerate_segments_are_left_out_with_one_warning_for_each_layer(net):
    with torch.no_grad():
        net.fc.weight[1] = 0.25
        net.fc.weight[3, :4] = 0.5
    with pytest.warns(UserWarning, match="not coupled") as caught:
        softq = SoftQuantizer(net, h=0.3, granularity="group:4")
    # 27 weights of a channel of conv leave groups of 3, the last; 1 + 6 of fc are constant.
    assert [str(warning.message) for warning in caught] == [
        "layer 'fc.weight': 7 of 30 segments are not coupled: their weights are equal, or only one"
    ]
    net.fc.weight.grad = torch.zeros_like(net.fc.weight)
    softq.add_force_()
    assert not net.fc.weight.grad[1].any()
    assert not net.fc.weight.grad[3, :4].any()
    assert net.fc.weight.grad[3, 4:].any()
    report = softq.finalize(bits=7, n_min=0, refinement="count")
    row = report.layers[1]
    assert (row.segments, row.degenerate_segments) == (30, 7)
    assert row.note.startswith("7 of 30 segments are not coupled")
    assert "7 of 30" in str(report)
    assert net.fc.weight[1].unique().tolist() == [0.25]


def test_single_weights_are_degenerate_segments(net):
    with pytest.warns(UserWarning, match="'conv.weight': 6 of 12 segments are not coupled"):
        softq = SoftQuantizer(net, granularity="group:26", include="conv.*")
    assert softq.layers[0].segments.size.tolist() == [26] * 6
    net.conv.weight.data = torch.ones(3, 3, 3, 3)
    with pytest.warns(UserWarning, match=r"all 81 weights of each segment \(channel\) are equal"):
        softq = SoftQuantizer(net, granularity="channel")
    assert softq.excluded["conv.weight"].startswith("degenerate: ")


@pytest.mark.filterwarnings("ignore:layer")
def test_single_weights_alone_leave_nothing_to_couple(net):
    with pytest.raises(ValueError, match="no weight to couple"):
        SoftQuantizer(net, granularity="group:1")


def test_what_is_wrong_is_said(net):
    with pytest.raises(ValueError, match="granularity must be 'layer', 'channel' or 'group:N'"):
        SoftQuantizer(net, granularity="row")
    with pytest.raises(ValueError, match="granularity 'channel' requires method 'scan'"):
        SoftQuantizer(net, granularity="channel", method="fft")
    net.fc.weight.data[0, :2] = torch.nan
    with pytest.raises(ValueError, match=r"'fc.weight': 2 of 120 weights are not finite"):
        SoftQuantizer(net, granularity="channel")


def test_energy_is_that_of_the_binned_pairs_of_each_segment(net):
    softq = SoftQuantizer(net, h=0.3, granularity="group:10", include="fc.*")
    layer = softq.layers[0]
    net.fc.weight.data = net.fc.weight.data.t().contiguous().t()
    flat = layer.parameter.detach().reshape(-1).numpy()
    total = 0.0
    for begin, size, width, strength in zip(
        *(getattr(layer.segments, field).tolist() for field in ("begin", "size", "width")),
        layer.segments.strength.tolist(),
        strict=True,
    ):
        rho = density(flat[begin : begin + size], 256)
        midpoints = np.repeat((np.arange(256) + 0.5) * rho.spacing, rho.counts)
        total += strength * oracle.pair_energy(midpoints, width)
    assert softq.energy().total == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_saved_state_goes_on_bit_for_bit(net, granularity):
    options = {"h": 0.3, "granularity": granularity, "fraction": 0.5, "seed": 3}
    softq = SoftQuantizer(net, **options)
    file = io.BytesIO()
    torch.save(softq.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    with torch.no_grad():  # scales are of the pretrained weights
        for parameter in net.parameters():
            parameter.mul_(1.5)
    other = SoftQuantizer(net, h=1.0)
    with pytest.warns(UserWarning, match=r"h 0\.3, not 1\.0"):
        other.load_state_dict(state)
    assert other.granularity == granularity
    forces = []
    for each in (softq, other):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        each.add_force_()
        forces.append([layer.parameter.grad.clone() for layer in each.layers])
    assert all(torch.equal(a, b) for a, b in zip(*forces, strict=True))


def test_states_that_do_not_fit_are_refused(net):
    softq = SoftQuantizer(net, granularity="group:8")
    state = softq.state_dict()
    for granularity in ("layer", "channel", "group:0"):
        with pytest.raises(ValueError, match=r"state|segments|granularity"):
            softq.load_state_dict({**state, "granularity": granularity})
    for field, value in [
        ("sigma", torch.ones(3)),
        ("number", torch.arange(24) + 1),
        ("number", torch.arange(24).flip(0)),
        ("width", torch.ones(24, 1)),
    ]:
        layers = [dict(record) for record in state["layers"]]
        layers[0][field] = value
        with pytest.raises(ValueError, match="no record of 24 segments"):
            softq.load_state_dict({**state, "layers": layers})
    old = SoftQuantizer(net).state_dict()
    del old["granularity"]  # as it was before there were segments
    with pytest.warns(UserWarning, match="granularity 'layer', not 'group:8'"):
        softq.load_state_dict(old)
    assert softq.granularity == "layer"


VALUES = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 1e30])


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    group=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    bits=st.integers(0, 5),
    n_min=st.integers(0, 4),
)
def test_clusters_of_segments_are_those_of_each_alone(shape, group, seed, bits, n_min):
    generator = torch.Generator().manual_seed(seed)
    theta = VALUES[torch.randint(len(VALUES), tuple(shape), generator=generator)]
    bounds = segment_bounds(shape, f"group:{group}")
    flat = theta.reshape(-1)
    ends = bounds.tolist()
    parts = [flat[a:b] for a, b in pairwise(ends)]
    makers = [
        lambda x, bounds=None: identify(x, bits, bounds),
        lambda x, bounds=None: refine(identify(x, bits, bounds), n_min),
        lambda x, bounds=None: unique(x, bounds),
        lambda x, bounds=None: merge(identify(x, bits, bounds), 0.3),
    ]
    for make in makers:
        together, alone = make(theta, bounds), [make(part) for part in parts]
        assert_joined(together, alone)


def assert_joined(together: Clusters, alone: list[Clusters]) -> None:
    sizes = [clusters.K for clusters in alone]
    assert together.segments == len(alone)
    assert together.codebook_sizes.tolist() == sizes
    assert torch.equal(together.codebook, torch.cat([clusters.codebook for clusters in alone]))
    assert torch.equal(together.counts, torch.cat([clusters.counts for clusters in alone]))
    assert torch.equal(together.weights(), torch.cat([clusters.weights() for clusters in alone]))
    starts = np.cumsum([0, *sizes[:-1]])
    indices = [clusters.indices + start for clusters, start in zip(alone, starts, strict=True)]
    assert torch.equal(together.indices, torch.cat(indices))
    lengths = [clusters.size for clusters in alone]
    for quantity in ("bits", "entropy_bits"):
        mean = np.average([getattr(clusters, quantity) for clusters in alone], weights=lengths)
        assert getattr(together, quantity) == pytest.approx(mean, abs=1e-12)
    assert together.container_bits == max(clusters.container_bits for clusters in alone)
    assert together.codebook_bytes == 4 * sum(sizes)
    for part, clusters in zip(split(together), alone, strict=True):
        assert torch.equal(part.codebook, clusters.codebook)
        assert torch.equal(part.indices, clusters.indices)
        assert torch.equal(part.counts, clusters.counts)


def test_finalize_writes_a_codebook_for_each_segment_and_reports_it(net):
    softq = SoftQuantizer(net, granularity="channel")
    found = softq.clusters(bits=3, n_min=2)
    report = softq.finalize(bits=3, n_min=2, refinement="count")
    for row, layer in zip(report.layers, softq.layers, strict=True):
        channels = list(layer.parameter.detach())
        distinct = [len(channel.unique()) for channel in channels]
        assert torch.equal(layer.parameter, found[layer.name].weights(layer.parameter.shape))
        assert row.segments == len(channels)
        assert row.clusters == sum(distinct)
        assert row.codebook_bytes == 4 * sum(distinct)
        assert row.bits == pytest.approx(np.log2(distinct).mean())
    assert report.codebook_bytes == sum(row.codebook_bytes for row in report.layers)
    assert report.to_dict()["codebook_bytes"] == report.codebook_bytes
    assert "codebook bytes" in str(report)
    assert "codebook bytes" not in str(SoftQuantizer(net).finalize())


def test_scales_of_weights_far_from_zero_are_exact():
    model = nn.Linear(1000, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(1e16 + 2 * (torch.arange(2000).reshape(2, 1000) % 2).double())
    (layer,) = SoftQuantizer(model, granularity="channel").layers
    assert layer.segments.sigma.tolist() == [1.0, 1.0]
