"""Models and optimizers inside of what other libraries put around them: names and results alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pysoftq import (
    Codebooks,
    Compressor,
    SoftQuantizer,
    Target,
    inspect_compressed,
    load_compressed,
    load_state_dict,
    save_compressed,
    unique,
    validate_clustering,
)
from pysoftq.coupling.report import CompressionReport
from pysoftq.coupling.selection import select
from pysoftq.export import to_state_dict
from pysoftq.export.network import read_network
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import cpu_state, stored_once
from pysoftq.models.wrappers import innermost, owner, specification, torch_optimizer, unwrapped

# Other libraries warn of each other; what pysoftq warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::pysoftq")


class Net(nn.Module):
    """Blocks in a list, a part that is used twice, a parameter of its own, buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.randn(6, 6))
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.norm = nn.BatchNorm1d(6)
        self.again = self.blocks[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x @ self.scale))
        return self.again(self.norm(x))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def with_compiled_blocks(model: nn.Module) -> nn.Module:
    model.blocks = nn.ModuleList([compiled(block) for block in model.blocks])
    model.again = model.blocks[0]
    return model


def with_a_data_parallel_part(model: nn.Module) -> nn.Module:
    model.norm = nn.DataParallel(compiled(model.norm))
    return model


def of_accelerate(model: nn.Module) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(nn.DataParallel(model))


def in_regions(model: nn.Module) -> nn.Module:
    pytest.importorskip("accelerate")
    from accelerate.utils import compile_regions

    return compile_regions(model, backend="eager")


def of_fabric(model: nn.Module) -> nn.Module:
    lightning = pytest.importorskip("lightning")
    return lightning.Fabric(accelerator="cpu", devices=1).setup(compiled(model))


def with_checkpointed_parts(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

    model.blocks = nn.ModuleList([checkpoint_wrapper.checkpoint_wrapper(b) for b in model.blocks])
    model.again = model.blocks[0]
    return checkpoint_wrapper.checkpoint_wrapper(model)


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    compiled,
    nn.DataParallel,
    AveragedModel,
    lambda model: nn.DataParallel(compiled(AveragedModel(model))),
    with_compiled_blocks,
    with_a_data_parallel_part,
    with_checkpointed_parts,
    lambda model: nn.DataParallel(with_a_data_parallel_part(with_compiled_blocks(model))),
    of_accelerate,
    in_regions,
    of_fabric,
]


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not dist.is_gloo_available():
        pytest.skip("torch has no gloo here")
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=WRAPPERS)
def wrapped(request: pytest.FixtureRequest) -> nn.Module:
    return request.param(clustered(Net()))


def clustered(model: nn.Module) -> nn.Module:
    SoftQuantizer(model).finalize(bits=3, n_min=0, refinement="count")
    return model.eval()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def test_names_have_no_prefixes_and_tensors_are_shared(wrapped: nn.Module) -> None:
    bare = unwrapped(wrapped)
    assert list(bare.state_dict()) == list(Net().state_dict())
    theirs = {id(tensor) for tensor in (*wrapped.parameters(), *wrapped.buffers())}
    assert {id(tensor) for tensor in (*bare.parameters(), *bare.buffers())} <= theirs
    assert bare.again is bare.blocks[0]
    assert unwrapped(bare) is bare
    for name in dict(bare.named_parameters()):
        module, parameter = owner(wrapped, name)
        assert module._parameters[parameter] is bare.get_parameter(name)
        assert any(module is part for part in wrapped.modules())


def test_a_model_without_wrappers_is_itself() -> None:
    model = Net()
    assert unwrapped(model) is innermost(model) is model
    names = list(model.state_dict())
    with_compiled_blocks(model)
    unwrapped(model)
    assert list(model.state_dict()) != names  # the model is left as it is


def test_files_are_those_of_the_bare_model(wrapped: nn.Module, tmp_path: Path) -> None:
    model, path, other = clustered(Net()), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_compressed(model, path)
    save_compressed(wrapped, other)
    assert path.read_bytes() == other.read_bytes()
    assert [layer.name for layer in inspect_compressed(other).layers] == [
        "scale",
        "blocks.0.weight",
        "blocks.1.weight",
    ]
    assert to_state_dict(wrapped, tmp_path / "b.pt").tensors == (
        to_state_dict(model, tmp_path / "a.pt").tensors
    )
    assert_same_states(torch.load(tmp_path / "b.pt"), model.state_dict())
    assert_same_states(cpu_state(wrapped), model.state_dict())
    assert list(stored_once(wrapped)) == list(stored_once(model))


def assert_same_states(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_loading_fills_what_is_inside(
    wrap: Callable[[nn.Module], nn.Module], lazy: bool, tmp_path: Path
) -> None:
    model, path = clustered(Net()), tmp_path / "a.safetensors"
    save_compressed(model, path)
    other = Net()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    target = wrap(other)
    assert load_compressed(path, target, lazy=lazy) is target
    assert_same(unwrapped(target), model)
    x = torch.randn(4, 6)
    with torch.no_grad():
        assert torch.equal(target.eval()(x), model(x))
    if lazy:
        assert type(owner(target, "blocks.1.weight")[0]).__name__ == "CompressedLinear"
        assert "scale" not in dict(target.named_parameters())


def test_the_coupling_acts_on_what_is_inside(wrapped: nn.Module) -> None:
    softq = SoftQuantizer(wrapped, h=0.1)
    expected = SoftQuantizer(clustered(Net()), h=0.1)
    assert softq.state_dict() == expected.state_dict()
    assert [row.name for row in softq.tensors()] == [row.name for row in expected.tensors()]
    assert list(select(wrapped)[0]) == [layer.name for layer in softq.layers]
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    softq.attach(optimizer)
    for parameter in wrapped.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(unwrapped(wrapped).state_dict())
    optimizer.step()
    optimizer.zero_grad()
    for layer in softq.layers:
        assert not torch.equal(unwrapped(wrapped).get_parameter(layer.name), before[layer.name])
    report = softq.finalize(bits=2, n_min=0, refinement="count")
    validate_clustering(wrapped, report)
    clusters = {layer.name: unique(layer.parameter) for layer in softq.layers}
    assert len(Codebooks(wrapped, clusters).values) == 3


def test_exports_look_inside(wrapped: nn.Module) -> None:
    network = read_network(wrapped, torch.zeros(2, 6), None, batch=2)
    assert not any(innermost(part) is not part for part in network.model.modules())
    assert_same(network.model, clustered(Net()))
    assert not {id(x) for x in network.model.parameters()} & {id(x) for x in wrapped.parameters()}


def test_a_specification_is_found_through_wrappers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = build_model("digits-resnet-small", 10, in_channels=1)
    for wrap in (compiled, nn.DataParallel, AveragedModel):
        assert specification(nn.DataParallel(wrap(model))) == model.pysoftq_spec
        save_compressed(wrap(model), path)
        assert_same(load_compressed(path), model)
    outside = nn.DataParallel(nn.Linear(2, 2))
    assert specification(outside) is None
    outside.pysoftq_spec = {"name": "of the wrapper"}
    assert specification(outside) == {"name": "of the wrapper"}


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    model, path = clustered(Net()), tmp_path / "a.safetensors"
    save_compressed(model, path)
    save_compressed(DistributedDataParallel(compiled(model)), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    target = DistributedDataParallel(Net())
    assert_same(load_compressed(path, target).module, model)
    assert load_state_dict(path).keys() == model.state_dict().keys()


# --- optimizers ---
def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(2, 2))], lr=0.1)


class Wrapper:
    """As people write them, with the parameters in view."""

    def __init__(self, optimizer: Any) -> None:
        self.inside, self.param_groups = optimizer, optimizer.param_groups

    def step(self) -> None:
        self.inside.step()


class WithoutHooks(torch.optim.Optimizer):
    """An optimizer that leaves out the initialization of its base class."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups = optimizer.param_groups


def holding_itself(wrapper: Wrapper) -> Wrapper:
    wrapper.inside = wrapper
    return wrapper


def test_optimizers_are_looked_into() -> None:
    optimizer = sgd()
    assert torch_optimizer(optimizer) is optimizer
    assert torch_optimizer(Wrapper(Wrapper(optimizer))) is optimizer
    assert torch_optimizer(copy.deepcopy(optimizer)) is not optimizer


def test_the_optimizers_of_other_libraries_are_looked_into() -> None:
    accelerate = pytest.importorskip("accelerate")
    pytest.importorskip("lightning")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    optimizer = sgd()
    prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert torch_optimizer(prepared) is optimizer
    assert torch_optimizer(LightningOptimizer(prepared)) is optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda optimizer: {}, "got dict; pass the optimizer inside of it"),
        (lambda optimizer: None, "got NoneType"),
        (lambda optimizer: [optimizer], "got a list; pass its optimizers one by one"),
        (
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
            "got the learning-rate scheduler StepLR; pass its optimizer",
        ),
        (WithoutHooks, r"WithoutHooks, which does not call Optimizer\.__init__"),
        (lambda optimizer: Wrapper(WithoutHooks(optimizer)), "got Wrapper"),
        (lambda optimizer: holding_itself(Wrapper(optimizer)), "got Wrapper"),
    ],
)
def test_what_is_no_optimizer_is_refused(make: Callable[[Any], Any], message: str) -> None:
    model = nn.Linear(4, 4)
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1))
    softq = SoftQuantizer(model)
    with pytest.raises(TypeError, match=message):
        softq.attach(optimizer)
    softq.add_force_()  # is not attached
    codebooks = Codebooks(model, softq.clusters())
    with pytest.raises(TypeError, match=message):
        codebooks.attach(optimizer)


def test_attached_through_a_wrapper_the_force_enters_once() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    softq = SoftQuantizer(model, h=0.1)
    softq.attach(Wrapper(optimizer))
    assert softq.optimizers == (optimizer,)
    model.weight.grad = torch.zeros_like(model.weight)
    Wrapper(optimizer).step()
    assert softq.step == 1
    assert model.weight.grad.any()
    with pytest.raises(ValueError, match="one or more different optimizers"):
        SoftQuantizer(model).attach(optimizer, Wrapper(optimizer))


NO_MODULES = {
    "str": "net.safetensors",
    "OrderedDict": nn.Linear(2, 2).state_dict(),
    "the class Linear": nn.Linear,
    "NoneType": None,
}
TAKE_A_MODEL: dict[str, Callable[[Any, Path], Any]] = {
    "SoftQuantizer": lambda model, path: SoftQuantizer(model),
    "Compressor": lambda model, path: Compressor(model, Target(bytes=100)),
    "Codebooks": lambda model, path: Codebooks(model, {}, {}),
    "save_compressed": save_compressed,
    "cpu_state": lambda model, path: cpu_state(model),
    "validate_clustering": lambda model, path: validate_clustering(model, CompressionReport(())),
}


@pytest.mark.parametrize("given", NO_MODULES)
@pytest.mark.parametrize("call", TAKE_A_MODEL)
def test_what_is_no_module_is_refused(call: str, given: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"^`model` must be a torch\.nn\.Module, got {given}$"):
        TAKE_A_MODEL[call](NO_MODULES[given], tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["str", "OrderedDict", "the class Linear"])
def test_no_file_is_loaded_into_what_is_no_module(given: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    save_compressed(nn.Linear(2, 2), path)
    with pytest.raises(TypeError, match=rf"^`model` must be a torch\.nn\.Module, got {given}$"):
        load_compressed(path, NO_MODULES[given])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must be"):  # the other way round
        load_compressed(nn.Linear(2, 2), str(path))  # type: ignore[call-overload]
