"""Any optimizer: what `attach` adds to its steps is what `add_force_` adds by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pysoftq import SoftQuantizer

CLASSES = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adadelta", "Adamax")
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")  # on a CPU
OPTIONS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.5}}
VARIANTS = [
    *((name, {"foreach": False}) for name in CLASSES),
    *((name, {"foreach": True}) for name in CLASSES),
    *((name, {"fused": True}) for name in FUSED),
    ("AdamW", {"amsgrad": True}),
    ("SGD", {"maximize": True}),
]

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Net(nn.Module):
    """Convolution, normalization, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.Linear(64, 32)
        self.down = nn.Linear(32, 64, bias=False)
        self.again = nn.Linear(32, 64, bias=False)
        self.again.weight = self.down.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.again(F.relu(self.up(self.down(F.relu(self.up(x))))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 3, 6, 6, generator=generator)
    return F.cross_entropy(model(images), torch.randint(0, 64, (8,), generator=generator))


def train_attached(model: nn.Module, make: Make, steps: int = 4) -> SoftQuantizer:
    optimizer = make(model)
    softq = SoftQuantizer(model, h=0.2, w=0.5, fraction=0.7)
    softq.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return softq


def train_by_hand(model: nn.Module, make: Make, steps: int = 4, h: float = 0.2) -> SoftQuantizer:
    optimizer = make(model)
    softq = SoftQuantizer(model, h=h, w=0.5, fraction=0.7)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        softq.add_force_()
        optimizer.step()
    return softq


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def assert_coupled(model: nn.Module, softq: SoftQuantizer, make: Make, start: nn.Module) -> None:
    """Every coupled layer ends elsewhere than without a force."""
    plain = copy.deepcopy(start)
    train_by_hand(plain, make, h=0)
    assert len(softq.layers) == 3
    for layer in softq.layers:
        assert not torch.equal(layer.parameter, plain.get_parameter(layer.name)), layer.name


@pytest.mark.parametrize(
    ("name", "variant"),
    VARIANTS,
    ids=[f"{n} {' '.join(v)}={next(iter(v.values()))}" for n, v in VARIANTS],
)
def test_attached_is_as_by_hand(net: Net, name: str, variant: dict[str, bool]) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        options = {"lr": 0.01, **OPTIONS.get(name, {}), **variant}
        return getattr(torch.optim, name)(model.parameters(), **options)

    start, by_hand = copy.deepcopy(net), copy.deepcopy(net)
    softq = train_attached(net, make)
    train_by_hand(by_hand, make)
    assert_same(net, by_hand)
    assert_coupled(net, softq, make, start)


def test_parameter_groups(net: Net) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        decayed = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() == 1]
        return torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.1}], lr=0.01
        )

    start, by_hand = copy.deepcopy(net), copy.deepcopy(net)
    softq = train_attached(net, make)
    train_by_hand(by_hand, make)
    assert_same(net, by_hand)
    assert_coupled(net, softq, make, start)


def test_a_group_that_is_added_later_belongs_to_the_optimizer(net: Net) -> None:
    softq = SoftQuantizer(net, h=0.2)
    optimizer = torch.optim.SGD(net.conv.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"no given optimizer updates: up\.weight, down\.weight"):
        softq.attach(optimizer)
    optimizer.add_param_group({"params": [*net.up.parameters(), *net.down.parameters()]})
    softq.attach(optimizer)


def test_lbfgs_adds_the_force_at_each_evaluation(net: Net) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    by_hand = copy.deepcopy(net)
    optimizer, softq = make(net), SoftQuantizer(net, h=0.2)
    softq.attach(optimizer)
    other, forces = make(by_hand), SoftQuantizer(by_hand, h=0.2)

    def attached() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    def forced() -> torch.Tensor:
        other.zero_grad()
        loss = loss_of(by_hand, 0)
        loss.backward()
        forces.add_force_()
        return loss

    for _ in range(2):
        optimizer.step(attached)
        other.step(forced)
    assert_same(net, by_hand)
    assert softq.step == forces.step > 2


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_compiled_models(net: Net) -> None:
    start, plain = copy.deepcopy(net), copy.deepcopy(net)
    train_attached(plain, adamw)
    softq = train_attached(torch.compile(net, backend="eager"), adamw)
    for (name, x), y in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=name)
    assert_coupled(net, softq, adamw, start)
    assert [layer.name for layer in softq.layers] == ["conv.weight", "up.weight", "down.weight"]


def test_channels_last(net: Net) -> None:
    start = copy.deepcopy(net)
    net = net.to(memory_format=torch.channels_last)
    by_hand = copy.deepcopy(net)
    softq = train_attached(net, adamw)
    train_by_hand(by_hand, adamw)
    assert_same(net, by_hand)
    assert_coupled(net, softq, adamw, start)


def test_autocast_leaves_weights_and_force_in_float32(net: Net) -> None:
    by_hand = copy.deepcopy(net)
    optimizer, softq = adamw(net), SoftQuantizer(net, h=0.2)
    softq.attach(optimizer)
    other, forces = adamw(by_hand), SoftQuantizer(by_hand, h=0.2)
    for step in range(3):
        for model in (net, by_hand):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, step)
            model.zero_grad()
            loss.backward()
        forces.add_force_()
        other.step()
        optimizer.step()
    assert_same(net, by_hand)
