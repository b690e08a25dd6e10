from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pysoftq
from pysoftq import SoftQuantizer, force, pair_energy
from pysoftq.coupling import devices


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(16, 1, 6, 6, generator=generator)
    return images, torch.randint(0, 5, (16,), generator=generator)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    images, labels = batch(step)
    return F.cross_entropy(model(images), labels)


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, **options)


def train(model, optimizer, steps=5, before_step=lambda: None) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before_step()
        optimizer.step()


def expected_force(softq: SoftQuantizer, name: str) -> torch.Tensor:
    """h_l dV/dtheta of one layer by the public function, rounded as a float32 product."""
    layer = next(layer for layer in softq.layers if layer.name == name)
    values = force(layer.parameter, layer.width, softq.bins, softq.method)
    return (layer.strength * values.double()).to(values.dtype)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def nearly_the_same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks differ by no more than the rounding of a few scaled forces."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in pairs)


def test_scales_are_measured_once(net):
    softq = SoftQuantizer(net, h=0.2, w=0.4, alpha=0.5)
    assert [layer.name for layer in softq.layers] == ["conv.weight", "fc.weight"]
    for layer in softq.layers:
        sigma = layer.parameter.detach().double().numpy().std()
        assert layer.sigma == pytest.approx(sigma, rel=1e-12)
        assert layer.width == 0.4 * layer.sigma
        assert layer.strength == pytest.approx(0.2 / layer.size**0.5, rel=1e-12)
    before = [layer.record() for layer in softq.layers]
    with torch.no_grad():
        net.fc.weight.mul_(3)
    assert [layer.record() for layer in softq.layers] == before
    assert softq.excluded == {
        "conv.bias": "bias",
        "norm.weight": "normalization",
        "norm.bias": "normalization",
        "fc.bias": "bias",
    }


@pytest.mark.parametrize("method", ["scan", "fft"])
def test_force_enters_the_gradient(net, method):
    softq = SoftQuantizer(net, h=0.1, w=0.5, method=method)
    loss_of(net, 0).backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    softq.add_force_()
    for name, parameter in net.named_parameters():
        if name in ("conv.weight", "fc.weight"):
            expected = before[name] + expected_force(softq, name)
            assert not torch.equal(parameter.grad, before[name])
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=0)
        else:
            assert torch.equal(parameter.grad, before[name])
    assert softq.step == 1


def test_scan_force_is_exact(net):
    softq = SoftQuantizer(net, h=0.1, w=0.5)
    loss_of(net, 0).backward()
    before = net.fc.weight.grad.clone()
    softq.add_force_()
    assert torch.equal(net.fc.weight.grad, before + expected_force(softq, "fc.weight"))


def test_attached_equals_by_hand_and_comes_after_clipping(net):
    by_hand = copy.deepcopy(net)
    softq = SoftQuantizer(net, h=0.1)
    optimizer = sgd(net)
    softq.attach(optimizer)
    train(net, optimizer, before_step=lambda: nn.utils.clip_grad_norm_(net.parameters(), 0.1))

    other = SoftQuantizer(by_hand, h=0.1)

    def clip_then_force() -> None:
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
        other.add_force_()

    train(by_hand, sgd(by_hand), before_step=clip_then_force)
    assert_same(net, by_hand)
    assert softq.step == other.step == 5


def test_without_strength_training_is_untouched(net):
    plain = copy.deepcopy(net)
    train(plain, sgd(plain))
    softq = SoftQuantizer(net, h=0)
    optimizer = sgd(net)
    softq.attach(optimizer)
    train(net, optimizer)
    assert_same(net, plain)


def test_detach(net):
    plain = copy.deepcopy(net)
    train(plain, sgd(plain))
    softq, optimizer = SoftQuantizer(net, h=0.1), sgd(net)
    softq.attach(optimizer)
    softq.detach()
    train(net, optimizer)
    assert_same(net, plain)


def test_gradient_accumulation_adds_the_force_once(net):
    softq, optimizer = SoftQuantizer(net, h=0.1), sgd(net)
    softq.attach(optimizer)
    for step in range(4):
        (loss_of(net, step) / 4).backward()
    before = net.fc.weight.grad.clone()
    expected = before + expected_force(softq, "fc.weight")
    optimizer.step()
    assert torch.equal(net.fc.weight.grad, expected)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled and clipped"])
def test_grad_scaler_changes_nothing(net, make, unscale):
    def clip(model: nn.Module) -> None:
        if unscale:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    plain, uncoupled = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = make(plain.parameters())
    SoftQuantizer(plain, h=0.1).attach(optimizer)
    train(plain, optimizer, before_step=lambda: clip(plain))
    train(uncoupled, make(uncoupled.parameters()), before_step=lambda: clip(uncoupled))

    optimizer = make(net.parameters())
    SoftQuantizer(net, h=0.1).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(5):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            clip(net)
        scaler.step(optimizer)
        scaler.update()
    # Scaling by a power of two is exact, but the scaled force is rounded after its product.
    assert nearly_the_same(net, plain)
    assert not nearly_the_same(uncoupled, plain)  # the comparison would see a force that is lost


def test_grad_scaler_skips_a_step_with_inf(net):
    optimizer = OPTIMIZERS["sgd fused"](net.parameters())
    SoftQuantizer(net, h=0.1).attach(optimizer)
    before = copy.deepcopy(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(loss_of(net, 0)).backward()
    net.fc.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    for x, y in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_closures(net, by_keyword):
    plain = copy.deepcopy(net)
    optimizer = sgd(plain)
    SoftQuantizer(plain, h=0.1).attach(optimizer)
    train(plain, optimizer)

    optimizer = sgd(net)
    SoftQuantizer(net, h=0.1).attach(optimizer)
    for step in range(5):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
        assert loss.item() > 0
    assert_same(net, plain)


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

    softq = SoftQuantizer(Tied(), h=0.1)
    assert [layer.name for layer in softq.layers] == ["embedding.weight"]


def test_frozen_and_gradless_parameters(net):
    net.conv.weight.requires_grad_(False)
    softq = SoftQuantizer(net, h=0.1)
    assert [layer.name for layer in softq.layers] == ["fc.weight"]
    assert softq.excluded["conv.weight"] == "frozen (requires_grad is False)"
    softq.add_force_()  # no gradient anywhere yet
    assert net.fc.weight.grad is None


def test_parameter_groups_and_several_optimizers(net):
    softq = SoftQuantizer(net, h=0.1)
    first = torch.optim.SGD([{"params": net.conv.parameters()}, {"params": net.norm.parameters()}])
    second = torch.optim.SGD(net.fc.parameters())
    with pytest.raises(ValueError, match=r"no given optimizer updates: fc\.weight"):
        softq.attach(first)
    softq.attach(first, second)
    loss_of(net, 0).backward()
    conv = net.conv.weight.grad + expected_force(softq, "conv.weight")
    fc = net.fc.weight.grad.clone()
    fc_force = expected_force(softq, "fc.weight")
    first.step()
    assert torch.equal(net.conv.weight.grad, conv)
    assert torch.equal(net.fc.weight.grad, fc)
    second.step()
    assert torch.equal(net.fc.weight.grad, fc + fc_force)


def test_names_choose_layers(net):
    names = lambda **options: [x.name for x in SoftQuantizer(net, **options).layers]  # noqa: E731
    assert names(include="fc.*") == ["fc.weight"]
    assert names(include=["*.weight"], exclude="conv*") == ["fc.weight"]
    assert SoftQuantizer(net, exclude="fc*").excluded["fc.weight"] == "exclude pattern 'fc*'"
    assert SoftQuantizer(net, include="fc*").excluded["conv.weight"] == "not matched by include"
    for pattern in ("layer1.*", "norm.*"):
        with pytest.raises(ValueError, match=r"include pattern .* there are: conv\.weight"):
            SoftQuantizer(net, include=pattern)
    with pytest.raises(ValueError, match="exclude pattern 'nothing'"):
        SoftQuantizer(net, exclude="nothing")
    with pytest.raises(ValueError, match="no weight to couple"):
        SoftQuantizer(net, exclude="*")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(net, dtype):
    net = net.to(dtype)
    softq = SoftQuantizer(net, h=0.1)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    before = net.fc.weight.grad.to(wide, copy=True)
    softq.add_force_()
    expected = (before + expected_force(softq, "fc.weight")).to(dtype)
    assert torch.equal(net.fc.weight.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_gradient(dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    patterns = patterns.reshape(256, 256)
    model = nn.Linear(256, 256, bias=False).to(dtype)
    softq = SoftQuantizer(model, h=3.0)
    model.weight.grad = patterns.clone()
    softq.add_force_()
    expected = (patterns.float() + expected_force(softq, "weight")).to(dtype)
    assert torch.equal(model.weight.grad.isnan(), expected.isnan())
    finite = ~expected.isnan()
    assert torch.equal(model.weight.grad[finite], expected[finite])


ROW_MAJOR = torch.contiguous_format
LAYOUTS = {
    "contiguous": torch.clone,
    "channels last": lambda x: x.clone(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).clone(memory_format=ROW_MAJOR).transpose(0, 1),
    "with gaps": lambda x: torch.stack([x, x + 1], dim=-1)[..., 0],
}


@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_weight", LAYOUTS)
def test_memory_layouts(of_weight, of_gradient):
    def forced(weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        model = nn.Module()
        model.weight = nn.Parameter(weight)
        model.weight.grad = grad
        SoftQuantizer(model, h=0.1).add_force_()
        return model.weight.grad

    weight, grad = torch.randn(8, 6, 3, 3), torch.randn(8, 6, 3, 3)
    expected = forced(weight.clone(), grad.clone())
    assert not torch.equal(expected, grad)
    w, g = LAYOUTS[of_weight](weight), LAYOUTS[of_gradient](grad)
    assert w.is_contiguous() == (of_weight == "contiguous")
    assert g.is_contiguous() == (of_gradient == "contiguous")
    assert torch.equal(forced(w, g), expected)


def test_sample_is_new_each_step_and_the_same_again(net):
    def forces(start: int, steps: int) -> list[torch.Tensor]:
        softq = SoftQuantizer(net, h=0.1, fraction=0.4, seed=5)
        softq.step = start
        out = []
        for _ in range(steps):
            net.fc.weight.grad = torch.zeros_like(net.fc.weight)
            softq.add_force_()
            out.append(net.fc.weight.grad)
        return out

    first, second, third = forces(0, 3)
    assert not torch.equal(first, second)
    assert torch.equal(forces(2, 1)[0], third)


def test_sampled_force_is_unbiased(net):
    whole = SoftQuantizer(net, h=0.1)
    sampled = SoftQuantizer(net, h=0.1, fraction=0.3)
    exact = expected_force(whole, "fc.weight")
    net.fc.weight.grad = torch.zeros_like(net.fc.weight)
    for _ in range(400):
        sampled.add_force_()
    error = (net.fc.weight.grad / 400 - exact).norm() / exact.norm()
    assert error < 0.1  # without the factor 1 / fraction: 0.7


def test_resume_bit_for_bit(net):
    def start(model):
        softq = SoftQuantizer(model, h=0.1, fraction=0.5, seed=3)
        optimizer = sgd(model)
        return softq, optimizer

    whole = copy.deepcopy(net)
    softq, optimizer = start(whole)
    softq.attach(optimizer)
    train(whole, optimizer, 6)

    softq, optimizer = start(net)
    softq.attach(optimizer)
    train(net, optimizer, 3)
    buffer = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), softq.state_dict()], buffer)
    buffer.seek(0)
    model_state, optimizer_state, softq_state = torch.load(buffer, weights_only=True)
    fresh = Net()
    fresh.load_state_dict(model_state)
    softq = SoftQuantizer(fresh, h=9, w=9)  # everything comes from the state
    with pytest.warns(UserWarning, match=r"h 0\.1, not 9\.0, w 0\.5, not 9\.0"):
        softq.load_state_dict(softq_state)
    optimizer = sgd(fresh)
    optimizer.load_state_dict(optimizer_state)
    softq.attach(optimizer)
    for step in range(3, 6):
        optimizer.zero_grad()
        loss_of(fresh, step).backward()
        optimizer.step()
    assert_same(fresh, whole)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"h": 0.3}, r"h 0\.1, not 0\.3"),
        ({"w": 0.3}, r"w 0\.5, not 0\.3"),
        ({"potential": "log"}, r"potential 'linear', not 'log'"),
        ({"granularity": "channel"}, r"granularity 'layer', not 'channel'"),
        ({"exclude": "fc.*"}, r"'fc\.weight' is coupled \(exclude pattern 'fc\.\*'\)"),
        ({"include": "conv*"}, r"'fc\.weight' is coupled \(not matched by include\)"),
    ],
)
def test_a_state_says_which_options_it_changes(net, given, told):
    state = SoftQuantizer(net, h=0.1).state_dict()
    softq = SoftQuantizer(net, **given)
    with pytest.warns(UserWarning, match=rf"take the place of those given: {told}$") as caught:
        softq.load_state_dict(state)
    assert caught[0].filename == __file__
    assert softq.state_dict() == state


def test_resume_keeps_a_layer_that_has_collapsed(net):
    softq = SoftQuantizer(net, h=0.1)
    state = softq.state_dict()
    nn.init.constant_(net.fc.weight, 0.5)
    with pytest.warns(UserWarning, match=r"'fc\.weight' is not coupled"):
        again = SoftQuantizer(net, h=0.1)
    again.load_state_dict(state)
    assert again.state_dict() == state


def test_states_that_do_not_fit(net):
    softq = SoftQuantizer(net, h=0.1)
    state = softq.state_dict()
    wrong = copy.deepcopy(state)
    wrong["layers"][1]["size"] = 7
    with pytest.raises(ValueError, match=r"layer 'fc\.weight' of 7 weights; the model has 480"):
        softq.load_state_dict(wrong)
    wrong = copy.deepcopy(state)
    wrong["layers"][0]["name"] = "other"
    with pytest.raises(ValueError, match="layer 'other' of 54 weights; the model has none"):
        softq.load_state_dict(wrong)
    with pytest.raises(ValueError, match="lacks bins, step"):
        softq.load_state_dict({k: v for k, v in state.items() if k not in ("step", "bins")})
    other = {**state, "h": 0.2, "bins": 1024, "fraction": 0.5, "seed": 3, "step": 7}
    values = {"h": float("nan"), "w": -3, "step": -1, "layers": [], "bins": 0, "fraction": 0}
    for key, value in values.items():
        with pytest.raises(ValueError, match=r"must be|no layer"):
            softq.load_state_dict({**other, key: value})
    with pytest.raises(ValueError, match="a layer of the state has"):
        softq.load_state_dict({**state, "layers": [{}]})
    assert softq.state_dict() == state


def test_not_finite_weights_leave_all_gradients_alone(net):
    softq = SoftQuantizer(net, h=0.1)
    loss_of(net, 0).backward()
    before = [p.grad.clone() for p in net.parameters()]
    with torch.no_grad():
        net.fc.weight[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    with pytest.raises(ValueError, match=r"layer 'fc\.weight': 3 of 480 weights are not finite"):
        softq.add_force_()
    for old, parameter in zip(before, net.parameters(), strict=True):
        assert torch.equal(parameter.grad, old)
    with pytest.raises(ValueError, match=r"layer 'fc\.weight': 3 of 480 weights are not finite"):
        SoftQuantizer(net)


def test_a_layer_that_changed_its_size_is_refused(net):
    softq = SoftQuantizer(net, h=0.1)
    loss_of(net, 0).backward()
    before = net.conv.weight.grad.clone()
    net.fc.weight.data = torch.randn(2, 2)
    net.fc.weight.grad = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"'fc\.weight' was measured with 480 weights"):
        softq.add_force_()
    assert torch.equal(net.conv.weight.grad, before)
    assert softq.step == 0


def test_dtypes_that_cannot_be_computed_with_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn))
    softq = SoftQuantizer(model)
    assert softq.excluded["1.weight"] == "dtype torch.float8_e4m3fn"


def test_copies(net):
    softq = SoftQuantizer(net, h=0.1)
    other = copy.deepcopy(softq)
    assert other.state_dict() == softq.state_dict()
    loss_of(net, 0).backward()
    other.layers[1].parameter.grad = net.fc.weight.grad.clone()
    softq.add_force_()
    other.add_force_()
    assert torch.equal(other.layers[1].parameter.grad, net.fc.weight.grad)


def test_degenerate_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(1, 1), nn.Linear(3, 3))
    model[3].weight = nn.Parameter(torch.zeros(0, 3))
    nn.init.constant_(model[1].weight, 0.1)
    with pytest.warns(UserWarning, match="is not coupled") as caught:
        softq = SoftQuantizer(model, h=0.1)
    assert [str(w.message).split("'")[1] for w in caught] == ["1.weight", "2.weight", "3.weight"]
    assert [layer.name for layer in softq.layers] == ["0.weight"]
    assert softq.excluded["1.weight"] == "degenerate: all 4 weights are equal"
    assert softq.excluded["2.weight"] == "degenerate: it has 1 weight"
    assert softq.excluded["3.weight"] == "degenerate: it has no weight"


def test_sparse_gradients_are_refused():
    model = nn.Embedding(10, 4, sparse=True)
    softq = SoftQuantizer(model, h=0.1)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"'weight' has a gradient of layout torch\.sparse_coo"):
        softq.add_force_()


def test_energy_approaches_the_exact_one(net):
    softq = SoftQuantizer(net, h=0.1, w=0.5, bins=2**18)
    energy = softq.energy()
    for layer in softq.layers:
        exact = layer.strength * pair_energy(layer.parameter, layer.width)
        assert energy.layers[layer.name] == pytest.approx(exact, rel=1e-3)
    assert energy.total == pytest.approx(sum(energy.layers.values()))


def test_coupling_alone_lowers_the_energy_and_makes_clusters(net):
    softq = SoftQuantizer(net, h=0.3, w=0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
    softq.attach(optimizer)
    before = softq.energy().total
    for _ in range(300):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert softq.energy().total < before
    assert softq.clusters()["fc.weight"].K < 40


def test_finalize_writes_the_refined_clusters(net):
    softq = SoftQuantizer(net, h=0.1)
    bias = net.fc.bias.detach().clone()
    refined = softq.clusters(bits=4, n_min=25)
    report = softq.finalize(bits=4, n_min=25, refinement="count")
    for row, layer in zip(report.layers, softq.layers, strict=True):
        clusters = refined[layer.name]
        assert torch.equal(layer.parameter, clusters.weights(layer.parameter.shape))
        assert len(layer.parameter.unique()) == row.clusters == clusters.K
        assert row.clusters_before >= row.clusters
        assert row.bits == np.log2(row.clusters)
    assert report.layers[1].clusters_before > report.layers[1].clusters
    assert torch.equal(net.fc.bias, bias)
    sizes = np.array([54, 480])
    assert report.mean_bits == pytest.approx(
        float((sizes * [row.bits for row in report.layers]).sum() / sizes.sum())
    )


def test_finalize_says_where_nothing_could_be_refined(net):
    report = SoftQuantizer(net, h=0.1).finalize(bits=7, n_min=53, refinement="count")
    assert report.layers[0].note == "not refined: no cluster has more than 53 weights"
    assert report.layers[0].clusters == report.layers[0].clusters_before


def test_threads_change_nothing(net):
    before = pysoftq.get_num_threads()
    seen = []
    try:
        for threads in (1, 4):
            pysoftq.set_num_threads(threads)
            model = copy.deepcopy(net)
            optimizer = sgd(model)
            SoftQuantizer(model, h=0.1, fraction=0.6).attach(optimizer)
            train(model, optimizer)
            seen.append(model)
    finally:
        pysoftq.set_num_threads(before)
    assert_same(*seen)


def test_large_layers_are_split_between_threads():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(900, 700), nn.Linear(700, 20))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    softq = SoftQuantizer(model, h=0.1)
    before = pysoftq.get_num_threads()
    try:
        pysoftq.set_num_threads(3)
        softq.add_force_()
    finally:
        pysoftq.set_num_threads(before)
    for layer in softq.layers:
        assert torch.equal(layer.parameter.grad, expected_force(softq, layer.name))


def test_a_state_is_loaded_while_attached(net):
    softq, optimizer = SoftQuantizer(net, h=0.1), sgd(net)
    other = SoftQuantizer(net, h=0.4, exclude="fc.*")
    other.step = 7
    softq.attach(optimizer)
    with pytest.warns(UserWarning, match=r"h 0\.4, not 0\.1"):
        softq.load_state_dict(other.state_dict())
    assert softq.optimizers == (optimizer,)
    loss_of(net, 0).backward()
    before = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    optimizer.step()
    assert softq.step == 8
    assert torch.equal(net.fc.weight.grad, before["fc.weight"])
    assert not torch.equal(net.conv.weight.grad, before["conv.weight"])
    softq.detach()
    softq.attach(torch.optim.SGD([net.conv.weight], lr=0.1))
    with pytest.raises(ValueError, match=r"no given optimizer updates: fc\.weight"):
        softq.load_state_dict(SoftQuantizer(net).state_dict())
    assert softq.h == 0.4


def test_bad_input_is_refused(net):
    for options, message in [
        ({"h": -1}, "h must be finite and at least 0, got -1"),
        ({"h": float("nan")}, "h must be finite"),
        ({"w": 0}, "w must be finite and above 0, got 0"),
        ({"alpha": float("inf")}, "alpha must be from -10 to 10, got inf"),
        ({"alpha": 10.5}, "alpha must be from -10 to 10, got 10.5"),
        ({"bins": 0}, "bins must be an integer"),
        ({"method": "sort"}, "method must be 'scan' or 'fft'"),
        ({"fraction": 0}, "fraction must be"),
        ({"seed": -1}, "seed must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            SoftQuantizer(net, **options)
    softq, optimizer = SoftQuantizer(net), sgd(net)
    with pytest.raises(ValueError, match="fraction must be"):
        softq.fraction = 1.5
    for optimizers in ((), (optimizer, optimizer)):
        with pytest.raises(ValueError, match="one or more different optimizers"):
            softq.attach(*optimizers)
    softq.attach(optimizer)
    for call in (lambda: softq.attach(optimizer), softq.add_force_):
        with pytest.raises(RuntimeError, match="attached"):
            call()


def test_a_replaced_parameter_is_refused(net):
    softq, optimizer = SoftQuantizer(net, h=0.1), sgd(net)
    softq.attach(optimizer)
    net.load_state_dict({"fc.weight": torch.randn(5, 96)}, strict=False, assign=True)
    loss_of(net, 0).backward()
    weights = [p.detach().clone() for p in net.parameters()]
    gradients = [p.grad.clone() for p in net.parameters()]
    message = r"layer 'fc\.weight': its parameter has been replaced since it was measured"
    for call in (optimizer.step, softq.energy, softq.clusters, softq.finalize):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RuntimeError, match="attached"):  # the refused finalize has not detached
        softq.add_force_()
    softq.detach()
    with pytest.raises(ValueError, match=message):
        softq.add_force_()
    assert softq.step == 0
    for parameter, weight, gradient in zip(net.parameters(), weights, gradients, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("bits", [0, 21])
def test_finalize_refuses_bits_out_of_range(net, bits):
    softq, before = SoftQuantizer(net, h=0.1), copy.deepcopy(net)
    softq.attach(sgd(net))
    with pytest.raises(ValueError, match=f"`bits` must be from 1 to 20, got {bits}"):
        softq.finalize(bits=bits)
    assert_same(net, before)
    with pytest.raises(RuntimeError, match="attached"):  # still
        softq.add_force_()


def test_normalization_and_biases_of_two_dimensions_are_left_out():
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((4, 4)), LlamaRMSNorm())
    model[0].bias = nn.Parameter(torch.randn(4, 4))
    softq = SoftQuantizer(model)
    assert [layer.name for layer in softq.layers] == ["0.weight"]
    assert softq.excluded == {
        "0.bias": "bias",
        "1.weight": "normalization",
        "1.bias": "normalization",
        "2.weight": "normalization",
    }


def test_samples_follow_a_change_of_the_order_of_memory():
    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 3)
    softq = SoftQuantizer(model, h=0.1, fraction=0.5)
    for order in (torch.channels_last, torch.contiguous_format, torch.channels_last):
        model.to(memory_format=order)
        fresh = SoftQuantizer(model)
        fresh.load_state_dict(softq.state_dict())
        forces = []
        for coupling in (softq, fresh):
            model.weight.grad = torch.zeros_like(model.weight)
            coupling.add_force_()
            forces.append(model.weight.grad)
        assert torch.equal(*forces)


def test_layers_on_the_cpu_come_first(monkeypatch):
    # Its steps refuse weights at once, before gradients on other devices have changed.
    monkeypatch.setattr(devices, "DeviceGroup", lambda layers, *_: layers[0].weights.device.type)
    weights = [torch.empty(2, device=name) for name in ("meta", "cpu")]
    layers = [SimpleNamespace(weights=own, piece=None) for own in weights]
    assert devices.group_by_device(layers, [0, 1], bins=8, fft=False, log=False) == ["cpu", "meta"]


def test_a_name_with_brackets_stands_for_itself() -> None:
    model = nn.ModuleDict({"[red]": nn.Linear(4, 4), "r": nn.Linear(4, 4)})
    softq = SoftQuantizer(model, 0.1, 0.5, include="[red].weight")
    assert sorted(layer.name for layer in softq.layers) == ["[red].weight", "r.weight"]
    softq = SoftQuantizer(model, 0.1, 0.5, exclude="[[]red].weight")
    assert [layer.name for layer in softq.layers] == ["r.weight"]
    softq = SoftQuantizer(model, 0.1, 0.5, override={"[red].weight": {"w": 0.2}})
    assert softq.layers[0].width != softq.layers[1].width


@pytest.mark.parametrize("broken", ["weight", "sparse"])
def test_a_balance_that_raises_leaves_the_gradients(broken):
    model = nn.Sequential(nn.Embedding(10, 4, sparse=broken == "sparse"), nn.Linear(4, 3))
    softq = SoftQuantizer(model, h=0.1)
    model(torch.tensor([1, 2])).square().sum().backward()
    if broken == "weight":
        with torch.no_grad():
            model[1].weight[0, 0] = torch.nan
    before = [parameter.grad.to_dense().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="layer"):
        softq.balance()
    assert softq.step == 0
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, parameter.grad.to_dense())


def test_messages_stay_short_for_any_network():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(200)))
    names = r"0\.weight, 1\.weight, 2\.weight, 3\.weight, 4\.weight and 195 more"
    with pytest.raises(ValueError, match=rf"'no\*' matches no weight .* there are: {names}$"):
        SoftQuantizer(model, include="no*")
    with pytest.raises(ValueError, match=rf"matches no coupled weight; there are: {names}$"):
        SoftQuantizer(model, override={"no*": {"h": 1.0}})
    with pytest.raises(ValueError, match=rf"no given optimizer updates: {names}; leave"):
        SoftQuantizer(model).attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    model.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match=r"left out: 0\.weight \(.*\).* and 395 more$"):
        SoftQuantizer(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated
def test_a_network_of_torch_jit_is_refused():
    compiled = torch.jit.trace(nn.Linear(3, 4), torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"before torch\.jit compiles it"):
        SoftQuantizer(compiled)
