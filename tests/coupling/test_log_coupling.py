"""The coupling by the log potential."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pysoftq import ClusteringConfig, SoftQuantizer, force, mean_field_energy
from pysoftq.coupling import prepare
from pysoftq.errors import ConfigError
from pysoftq.interaction.segment_table import segment_bins


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def set_gradients(net: nn.Module, step: int = 0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_all_layers_have_the_strength_of_one_weight_in_all(net: Net) -> None:
    softq = SoftQuantizer(net, h=60, w=0.4, potential="log")
    sizes = [54, 480]
    assert [layer.size for layer in softq.layers] == sizes
    assert [layer.strength for layer in softq.layers] == [60 / 534, 60 / 534]
    assert (softq.potential, softq.h, softq.alpha) == ("log", 60, 0)
    override = SoftQuantizer(net, 60, potential="log", override={"fc*": {"h": 6, "w": 0.1}})
    assert [layer.strength for layer in override.layers] == [60 / 534, 6 / 534]
    rules = {tensor.name: tensor.rule for tensor in override.tensors()}
    assert rules["conv.weight"] == "h = 60, w = 0.5, log potential"
    assert rules["fc.weight"] == "override 'fc*': h = 6, w = 0.1, log potential"


def test_the_strength_has_a_default_of_its_own(net: Net) -> None:
    assert SoftQuantizer(net, potential="log").h == 100
    assert SoftQuantizer(net).h == 0.01
    assert SoftQuantizer(net, 0.0, potential="log").h == 0


@pytest.mark.parametrize("method", ["scan", "fft"])
def test_the_force_is_that_of_the_function(net: Net, method: str) -> None:
    softq = SoftQuantizer(net, h=60, w=0.4, potential="log", method=method)
    set_gradients(net)
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    softq.add_force_()
    for layer in softq.layers:
        unit = force(layer.parameter, layer.width, method=method, potential="log")
        expected = before[layer.name] + layer.strength * unit
        torch.testing.assert_close(layer.parameter.grad, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(layer.parameter.grad, before[layer.name])
    assert torch.equal(net.fc.bias.grad, before["fc.bias"])


def test_the_energy_is_the_mean_code_length_times_h(net: Net) -> None:
    softq = SoftQuantizer(net, h=60, w=0.4, potential="log")
    found = softq.energy()
    nats = {
        layer.name: mean_field_energy(layer.parameter, layer.width, potential="log")
        for layer in softq.layers
    }
    for layer in softq.layers:
        expected = 60 / 534 * nats[layer.name]
        assert found.layers[layer.name] == pytest.approx(expected, rel=1e-12)
    assert found.total == pytest.approx(60 * sum(nats.values()) / 534, rel=1e-12)
    assert 0 < found.total < 60 * math.log(480)


def test_steps_gather_the_tails() -> None:
    """In the tails the linear force hardly acts."""
    generator = torch.Generator().manual_seed(0)
    theta = 0.1 * torch.randn(4020, generator=generator)
    theta[4000:] = 1 + theta[4000:] / 10
    spreads = {}
    for potential, h in (("linear", 0.02), ("log", 24.0)):  # alike in the centre
        layer = nn.ParameterDict({"w": nn.Parameter(theta.clone().reshape(2, -1))})
        softq = SoftQuantizer(layer, h=h, w=1.0, potential=potential)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        softq.attach(optimizer)
        for _ in range(60):
            layer["w"].grad = torch.zeros_like(layer["w"])
            optimizer.step()
        spreads[potential] = float(layer["w"].detach().flatten()[4000:].std())
    assert spreads["log"] < spreads["linear"] / 2


def test_tails_feel_as_much_as_the_centre() -> None:
    theta = torch.randn(4002, generator=torch.Generator().manual_seed(0))
    theta[-2:] = torch.tensor([9.0, 9.2])
    forces = {}
    for potential in ("linear", "log"):
        layer = nn.ParameterDict({"w": nn.Parameter(theta.clone().reshape(2, -1))})
        softq = SoftQuantizer(layer, h=1.0, w=0.5, potential=potential)
        layer["w"].grad = torch.zeros_like(layer["w"])
        softq.add_force_()
        forces[potential] = layer["w"].grad.flatten().abs()
    for potential, least in (("linear", 0.0), ("log", 0.5)):
        values = forces[potential]
        assert values[-2:].min() > least * values[:4000].median()
    assert forces["linear"][-2:].max() < 0.02 * forces["linear"][:4000].median()


@pytest.mark.parametrize("granularity", ["channel", "group:7"])
def test_segments_share_out_the_strength(net: Net, granularity: str) -> None:
    softq = SoftQuantizer(net, h=60, w=0.4, potential="log", granularity=granularity)
    for layer in softq.layers:
        assert layer.segments is not None
        assert layer.segments.strength.tolist() == [60 / 534] * len(layer.segments.number)
        assert layer.strength == pytest.approx(60 / 534)
    set_gradients(net)
    before = net.fc.weight.grad.clone()
    softq.add_force_()
    segments = softq.layers[1].segments
    assert segments is not None
    flat, added = net.fc.weight.detach().reshape(-1), (net.fc.weight.grad - before).reshape(-1)
    rows = (segments.begin, segments.size, segment_bins(segments.size, softq.bins))
    numbers = zip(*(row.tolist() for row in rows), segments.width.tolist(), strict=True)
    for begin, size, bins, width in numbers:
        own = slice(begin, begin + size)
        expected = 60 / 534 * force(flat[own], width, bins, potential="log")
        torch.testing.assert_close(added[own], expected, rtol=1e-4, atol=1e-5)
    assert softq.tensors()[0].rule == "h = 60, w = 0.4, log potential"


def test_segments_that_are_not_coupled_have_no_share(net: Net) -> None:
    with torch.no_grad():
        net.fc.weight[2] = 0.5
    with pytest.warns(UserWarning, match="1 of 5 segments are not coupled"):
        softq = SoftQuantizer(net, h=60, potential="log", granularity="channel")
    assert softq.layers[1].strength == pytest.approx(60 / (534 - 96))
    with torch.no_grad():
        net.conv.weight.fill_(0.5)
    with pytest.warns(UserWarning, match="'conv.weight' is not coupled"):
        softq = SoftQuantizer(net, h=60, potential="log")
    assert softq.layers[0].strength == 60 / 480


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_continues_bit_for_bit(net: Net, fraction: float, dtype: torch.dtype) -> None:
    net.to(dtype)
    other = copy.deepcopy(net)
    softq = SoftQuantizer(net, h=60, potential="log", fraction=fraction, seed=3)
    resumed = SoftQuantizer(other)
    set_gradients(net)
    softq.add_force_()
    state = pickle.loads(pickle.dumps(softq.state_dict()))  # noqa: S301 - own bytes
    resumed.load_state_dict(state)
    assert (resumed.potential, resumed.alpha, resumed.step) == ("log", 0, 1)
    assert resumed.tensors() == softq.tensors()
    for model, one in ((net, softq), (other, resumed)):
        set_gradients(model, 1)
        one.add_force_()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert resumed.energy() == softq.energy()
    assert resumed.state_dict() == softq.state_dict()


def test_older_states_are_linear(net: Net) -> None:
    softq = SoftQuantizer(net, h=60, potential="log")
    state = SoftQuantizer(net).state_dict()
    del state["potential"]
    with pytest.warns(UserWarning, match=r"h 0\.01, not 60\.0, potential 'linear', not 'log'"):
        softq.load_state_dict(state)
    assert (softq.potential, softq.alpha) == ("linear", 0.66)
    with pytest.raises(ValueError, match="potential must be 'linear' or 'log', got 'cubic'"):
        softq.load_state_dict({**state, "potential": "cubic"})
    assert softq.potential == "linear"


def test_the_linear_potential_is_the_default(net: Net) -> None:
    other = copy.deepcopy(net)
    for model, options in ((net, {}), (other, {"potential": "linear"})):
        set_gradients(model)
        SoftQuantizer(model, h=0.3, fraction=0.5, **options).add_force_()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.5}, "`alpha` is for potential 'linear', got 0.5 for 'log'"),
        ({"h": -1.0}, "h must be finite and at least 0"),
        ({"granularity": "channel", "method": "fft"}, "requires method 'scan'"),
    ],
)
def test_bad_options_are_refused(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftQuantizer(net, potential="log", **options)
    with pytest.raises(ValueError, match="potential must be 'linear' or 'log', got 'Log'"):
        SoftQuantizer(net, potential="Log")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_layers_too_narrow_for_a_finite_force_are_refused(
    net: Net, dtype: torch.dtype, granularity: str
) -> None:
    net.to(dtype)
    tiny = torch.finfo(dtype).tiny
    with torch.no_grad():
        net.fc.weight.mul_(tiny / 100)
    with pytest.raises(ValueError, match=r"^layer 'fc.weight': its width .* overflows torch.float"):
        SoftQuantizer(net, h=60, potential="log", granularity=granularity)
    softq = SoftQuantizer(net, h=60, potential="log", exclude="fc*")
    assert len(softq.layers) == 1


@pytest.mark.parametrize("fraction", [1.0, 0.1, 1e-6])
def test_no_weight_feels_an_infinite_force(fraction: float) -> None:
    """Isolated, equal and crowded weights, in samples of any size."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.cat([torch.arange(50.0), torch.zeros(500), torch.randn(500, generator=generator)])
    layer = nn.ParameterDict({"w": nn.Parameter(theta.reshape(2, -1))})
    softq = SoftQuantizer(layer, h=1.0, w=0.01, potential="log", fraction=fraction)
    for _ in range(20):
        layer["w"].grad = torch.zeros_like(layer["w"])
        softq.add_force_()
        assert layer["w"].grad.isfinite().all()
        assert (layer["w"].grad.flatten()[10:50] == 0).all()  # alone


def test_options_of_a_training_loop(net: Net) -> None:
    config = ClusteringConfig(potential="log", h=125, w=0.4)
    assert ClusteringConfig.from_dict(config.to_dict()) == config
    softq = prepare(net, config)
    assert softq.state_dict() == SoftQuantizer(net, 125, 0.4, potential="log").state_dict()
    with pytest.raises(ConfigError, match=r"option 'alpha': .* no exponent with potential log"):
        ClusteringConfig(potential="log", alpha=1.0)
    with pytest.raises(ConfigError, match="option 'potential'"):
        ClusteringConfig(potential="cubic")


def test_training_with_finalize(net: Net) -> None:
    softq = SoftQuantizer(net, h=5, w=0.5, potential="log", fraction=0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    softq.attach(optimizer)
    before = softq.energy().total
    for step in range(100):
        images = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(net(images), torch.arange(16) % 5).backward()
        optimizer.step()
    assert softq.energy().total < 0.7 * before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = softq.finalize()
    assert report.layers[1].strength == 5 / 534
