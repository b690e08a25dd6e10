"""Files and codebooks of weights that several processes hold in pieces are those of one process.

One group of processes for each world size runs all checks. What each check raises is the outcome of
the test of its name.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forged_files import rewrite
from shards import (
    Check,
    Descent,
    Outcomes,
    assert_equal,
    assert_passed,
    columns,
    flat,
    flat_gradients,
    fsdp,
    full,
    hybrid,
    make_model,
    mesh,
    offloaded,
    outcomes_of,
    refused,
    rows,
    set_gradients,
    weights_of,
)
from torch import nn

from pysoftq import (
    Codebooks,
    Compressor,
    SoftQuantizer,
    Target,
    inspect_compressed,
    load_compressed,
    save_compressed,
)
from pysoftq.artifact.shared_saving import SharedTensor
from pysoftq.artifact.writing import FileWriter
from pysoftq.clusters.refinement import refine
from pysoftq.errors import ArtifactError
from pysoftq.interaction.pieces import is_dtensor, own_part
from pysoftq.models.gpt import GPT

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """A function that all processes run."""
    CHECKS[function.__name__] = function
    return function


class Patched:
    """Replaces an attribute for a while."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._place, self._value = (owner, name), value

    def __enter__(self) -> None:
        self._before = getattr(*self._place)
        setattr(*self._place, self._value)

    def __exit__(self, *_: object) -> None:
        setattr(*self._place, self._before)


class Mixed(nn.Module):
    """Clustered, raw, tied, empty and whole-number tensors; what no process divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(40, 30)
        self.tied = nn.Linear(40, 30)
        self.tied.weight = self.one.weight
        self.raw = nn.Linear(30, 7)
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.norm = nn.BatchNorm1d(30)
        self.register_buffer("table", torch.arange(12).reshape(3, 4))
        with torch.no_grad():
            self.one.weight.copy_((self.one.weight * 50).round() / 50)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.raw(self.norm(self.one(x) + self.tied(x)))


def gpt() -> GPT:
    torch.manual_seed(1)
    return GPT(2, 2, 16, vocab_size=65, context=12)


def fsdp_of(model: nn.Module, *blocks: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block, mesh=mesh(), **options)
    return fully_shard(model, mesh=mesh(), **options)


def saved(alone: nn.Module, sharded: nn.Module, **options: Any) -> bytes:
    """Both models have the same file."""
    if dist.get_rank() == 0:
        save_compressed(alone, "one", **options)
    save_compressed(sharded, "many", **options)
    dist.barrier()
    found = Path("many").read_bytes()
    assert found == Path("one").read_bytes(), options
    dist.barrier()
    return found


def files() -> list[str]:
    dist.barrier()
    return sorted(str(path) for path in Path().iterdir() if not path.name.startswith("meeting"))


@check
def files_are_those_of_one_process() -> None:
    shards = (
        (fsdp, torch.bfloat16),
        (rows, torch.float32),
        (columns, torch.bfloat16),
        (hybrid, torch.float32),
        (flat, torch.float32),
    )
    # Two processes take the codings that three do not.
    codings = itertools.cycle(("entropy", "packed"))
    if dist.get_world_size() == 2:
        next(codings)
    for granularity in ("layer", "channel", "group:7"):
        for shard, dtype in shards:
            alone, sharded = make_model(dtype), shard(make_model(dtype))
            for model in (alone, sharded):
                SoftQuantizer(model, granularity=granularity).finalize()
            saved(alone, sharded, granularity=granularity, coding=next(codings))
        next(codings)  # not the same one of each sharding


@check
def all_kinds_of_tensors_are_written() -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy

    options = {"metadata": {"a": 1}, "granularity": "channel"}
    saved(Mixed(), fsdp_of(Mixed()), **options)
    model = Mixed()
    offload = CPUOffloadPolicy(pin_memory=False)
    saved(Mixed(), fsdp_of(model, model.raw, offload_policy=offload), **options)
    assert inspect_compressed("many").metadata == {"a": 1}
    model = gpt()
    saved(gpt(), fsdp_of(model, *model.blocks))
    if dist.get_world_size() == 3:
        saved(Mixed(), flat(Mixed()), **options)
    else:
        saved(gpt(), flat(gpt()))


@check
def a_tensor_without_clusters_is_collected() -> None:
    for shard in (fsdp, flat):
        alone, sharded = make_model(), make_model()
        for model in (alone, sharded):
            with torch.no_grad():  # one process has few values, another one has many
                model[5].weight[:20] = 1
        saved(alone, shard(sharded))


@check
def files_are_loaded() -> None:
    flattening = flat if dist.get_world_size() == 3 else flat_gradients
    computing = (fsdp, flattening)
    for granularity, coding in (("layer", "entropy"), ("group:7", "packed")):
        alone = make_model()
        SoftQuantizer(alone, granularity=granularity).finalize()
        if dist.get_rank() == 0:
            save_compressed(alone, "one", granularity=granularity, coding=coding)
        dist.barrier()
        for shard in (fsdp, rows, columns, hybrid, flattening):
            model = make_model()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            model = shard(model)
            assert load_compressed("one", model) is model
            assert_equal(weights_of(model), weights_of(alone), shard.__name__)
            assert_equal(
                {"": full(model(torch.ones(2, 30)).detach())} if shard in computing else {},
                {"": alone(torch.ones(2, 30)).detach()} if shard in computing else {},
                "output",
            )
        dist.barrier()


@check
def all_kinds_of_tensors_are_loaded() -> None:
    expected = Mixed()
    if dist.get_rank() == 0:
        save_compressed(expected, "one")
    dist.barrier()
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = Mixed()
        model = load_compressed("one", fsdp_of(model, model.raw))
        for name, tensor in model.state_dict().items():
            assert torch.equal(full(tensor), expected.state_dict()[name]), name
        assert model.tied.weight is model.one.weight
        inputs = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.eval()(inputs), expected.eval()(inputs))
        assert is_dtensor(model.raw.weight)
        assert "several processes hold this one; pass False" in refused(
            lambda m=model: load_compressed("one", m, lazy=True)
        )
    model = load_compressed("one", flat(Mixed()))
    assert_equal(weights_of(model), weights_of(expected), "flat")
    assert torch.equal(model.eval()(inputs), expected.eval()(inputs))
    dist.barrier()


def old_file() -> bytes:
    """A file that is there before."""
    if dist.get_rank() == 0:
        save_compressed(make_model(), "model")
    dist.barrier()
    return Path("model").read_bytes()


@check
def an_error_in_one_process_is_raised_in_all() -> None:
    before, model = old_file(), fsdp(make_model())
    SoftQuantizer(model).finalize()
    entries, last = files(), dist.get_world_size() - 1

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def no_memory(*_: Any) -> None:
        raise MemoryError("no memory")

    for owner, name, function, kind, rank in (
        (FileWriter, "add", full_disk, OSError, 0),
        (FileWriter, "write", full_disk, OSError, 0),
        (SharedTensor, "_values", no_memory, MemoryError, last),
    ):
        place = (owner, name, function if dist.get_rank() == rank else getattr(owner, name))
        with Patched(*place):
            refused(lambda: save_compressed(model, "model"), kind)
        assert Path("model").read_bytes() == before
        assert files() == entries
    message = refused(lambda: save_compressed(model, "nowhere/model"), FileNotFoundError)
    assert message.startswith("cannot write nowhere/model: there is no folder")
    model.register_buffer("lazy", torch.eye(2).to_sparse() if dist.get_rank() == last else None)
    assert "lazy must be" in refused(lambda: save_compressed(model, "model"), TypeError)
    assert Path("model").read_bytes() == before
    assert files() == entries


@check
def processes_that_differ_write_nothing() -> None:
    model, rank = fsdp(make_model()), dist.get_rank()
    entries = files()
    message = refused(lambda: save_compressed(model, f"model-{rank}"))
    assert message == "the processes differ in path: 'model-0' on rank 0, 'model-1' on rank 1"
    coding = "packed" if rank else "entropy"
    assert "differ in coding" in refused(lambda: save_compressed(model, "new", coding=coding))
    model.register_buffer(f"own{rank}", torch.ones(1))
    assert "differ in the names" in refused(lambda: save_compressed(model, "new"))
    assert files() == entries


@check
def clusters_that_are_gone_are_noticed_by_all() -> None:
    model = fsdp(make_model())
    SoftQuantizer(model).finalize()
    with torch.no_grad():
        if dist.get_rank() == 0:
            own_part(model[0].weight).normal_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_compressed(model, "new")
    (warning,) = caught
    assert "clusters that were written into the model are gone: '0.weight' has" in str(warning)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        if dist.get_rank() == 1:
            warnings.simplefilter("error")
        assert "are gone" in refused(lambda: save_compressed(model, "new"), UserWarning)


@check
def nan_is_noticed_by_all() -> None:
    model = fsdp(make_model())
    with torch.no_grad():
        if dist.get_rank() == 0:
            own_part(model[0].weight)[:1] = torch.nan
    with pytest.warns(UserWarning, match=r"NaN or infinite values in 0\.weight: stored") as caught:
        save_compressed(model, "new")
    assert caught[0].filename == __file__


@check
def replicas_are_written_by_each_that_asks() -> None:
    model = nn.parallel.DistributedDataParallel(make_model())
    if dist.get_rank() == 1:
        save_compressed(model, "replica")  # would wait for ever if others were needed
    dist.barrier()
    assert_equal(weights_of(load_compressed("replica", make_model())), weights_of(make_model()), "")


@check
def a_file_that_cannot_be_loaded_changes_nothing() -> None:
    alone = make_model()
    SoftQuantizer(alone).finalize()
    last = dist.get_world_size() - 1
    if dist.get_rank() == 0:
        save_compressed(alone, "good", coding="packed")
        for name in ("indices", "codebook"):
            Path(name).write_bytes(Path("good").read_bytes())
        rewrite(Path("indices"), tensors=lambda all_: all_["indices/5.weight"].fill_(255))
        rewrite(Path("codebook"), tensors=lambda all_: all_["codebook/5.weight"].zero_())
        Path("cut").write_bytes(Path("good").read_bytes()[:-1])
    dist.barrier()
    model = fsdp(make_model())
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    calls: dict[str, Callable[[], Any]] = {
        "5.weight": lambda: load_compressed("indices", model),
        "codebook: 5.weight: its codebook": lambda: load_compressed("codebook", model),
        "cut is altered": lambda: load_compressed("cut", model),
        "does not fit": lambda: load_compressed("good", fsdp(nn.Sequential(nn.Linear(3, 5)))),
    }
    for message, call in calls.items():
        assert message in refused(call, ArtifactError)
        assert_equal(weights_of(model), before, message)
    path = "cut" if dist.get_rank() == last else "good"
    assert "cut is altered" in refused(lambda: load_compressed(path, model), ArtifactError)
    assert_equal(weights_of(model), before, "another file")
    old_file()
    path = "model" if dist.get_rank() == last else "good"
    assert "SHA-256" in refused(lambda: load_compressed(path, model))
    assert_equal(weights_of(model), before, "another file")
    load_compressed("good", model)
    assert_equal(weights_of(model), weights_of(alone), "good")


# --- trained clusters ---


def tune(model: nn.Module, lr: float = 0.05, steps: int = 4, **options: Any) -> Any:
    """Merge clusters and train them with given gradients; the report, and what was trained."""
    granularity = options.pop("granularity", "layer")
    sparsity = options.pop("sparsity", "auto")
    softq = SoftQuantizer(model, granularity=granularity, sparsity=sparsity)
    compressor = Compressor(softq, Target(rd_weight=0.02), options)
    optimizer = Descent(model.parameters(), lr=lr)
    compressor.attach(optimizer, total_steps=steps)
    for step in range(steps):
        set_gradients(model, step)
        optimizer.step()
    return compressor.finalize(), compressor.codebooks


# By the number of processes.
TRAININGS: dict[int, list[tuple[Any, torch.dtype, dict[str, Any]]]] = {
    2: [
        (columns, torch.float32, {"granularity": "channel"}),
        (hybrid, torch.float32, {"refinement": "entropy"}),
        (offloaded, torch.bfloat16, {"refinement": "count", "n_min": 5}),
        (flat, torch.bfloat16, {"granularity": "channel"}),
    ],
    3: [
        (fsdp, torch.float32, {"lr": 0.01}),
        (columns, torch.bfloat16, {"granularity": "group:7"}),
        (rows, torch.float32, {"sparsity": "keep"}),
        (flat, torch.float32, {"sparsity": "keep"}),
    ],
}


@check
def trained_clusters_are_those_of_one_process() -> None:
    for shard, dtype, options in TRAININGS[dist.get_world_size()]:
        alone, sharded = make_model(dtype), make_model(dtype)
        for model in (alone, sharded):
            with torch.no_grad():
                model[5].weight[::3] = 0
        what = (shard.__name__, dtype, options)
        report, codebooks = tune(alone, **options)
        found, shared = tune(shard(sharded), **options)
        assert found == report, what
        for name, value in codebooks.values.items():
            assert torch.equal(shared.values[name], value), (*what, name)
        for name, clusters in codebooks.clusters().items():
            own = shared.clusters()[name]
            assert torch.equal(own.codebook, clusters.codebook), (*what, name)
            assert torch.equal(own.counts, clusters.counts), (*what, name)
            assert torch.equal(own.indices, clusters.indices), (*what, name)
        found = weights_of(sharded)
        for name in codebooks.values:
            assert torch.equal(found[name], alone.get_parameter(name)), (*what, name)
        saved(alone, alone)  # what was trained can be written
        save_compressed(sharded, "many")


@check
def codebooks_take_whole_weights_too() -> None:
    alone, flattened, sharded = make_model(), flat(make_model()), fsdp(make_model())
    before = {name: tensor.clone() for name, tensor in weights_of(alone).items()}
    trained = []
    for model in (alone, flattened, sharded):
        softq = SoftQuantizer(model)
        clusters = {name: refine(found, 5) for name, found in softq.clusters(5).items()}
        codebooks = Codebooks(model, clusters, before, softq.rd_weights(0.1))
        optimizer = Descent([*codebooks.parameters(), *codebooks.weights()])
        codebooks.attach(optimizer)
        for step in range(3):
            set_gradients(model, step)
            optimizer.step()
        trained.append(weights_of(model))
    assert_equal(trained[1], trained[0], "trained")
    assert_equal(trained[2], trained[0], "trained")
    rank = dist.get_rank()
    found = SoftQuantizer(sharded).clusters(3)
    clusters = {name: refine(one, 100 * rank) for name, one in found.items()}
    assert "differ in the clusters" in refused(lambda: Codebooks(sharded, clusters))
    clusters = SoftQuantizer(sharded).clusters(3)
    wrong = {name: tensor.clone() for name, tensor in before.items()}
    if rank == 1:
        wrong["0.weight"].fill_(torch.nan)
    message = refused(lambda: Codebooks(sharded, clusters, wrong))
    assert message == "layer '0.weight': weights are not finite (NaN or inf)"
    compressor = Compressor(SoftQuantizer(sharded), Target(rd_weight=0.02))
    optimizer = Descent(sharded.parameters())
    message = refused(lambda: compressor.attach(optimizer, total_steps=3 + rank))
    assert "differ in total_steps" in message


@check
def a_missing_gradient_is_that_of_all_processes() -> None:
    alone, sharded = make_model(), fsdp(make_model())
    values = []
    for model in (alone, sharded):
        softq = SoftQuantizer(model)
        codebooks = Codebooks(model, softq.clusters(4), weights_of(model))
        set_gradients(model, 0)
        model[2].weight.grad = None
        if model is sharded and dist.get_rank() == 1:
            model[5].weight.grad = None  # nothing from this process, as if it were 0
        codebooks.sum_gradients()
        assert codebooks.values["2.weight"].grad is None
        assert codebooks.values["5.weight"].grad is not None
        values.append(codebooks.values["0.weight"].grad)
    assert torch.equal(values[0], values[1])


@check
def a_language_model_ends_with_the_file_of_one_process() -> None:
    alone, sharded = gpt(), gpt()
    fsdp_of(sharded, *sharded.blocks)
    for model in (alone, sharded):
        softq = SoftQuantizer(model, h=0.3, fraction=0.5)
        optimizer = Descent(model.parameters())
        softq.attach(optimizer)
        for step in range(3):
            set_gradients(model, step)
            optimizer.step()
        compressor = Compressor(softq, Target(rd_weight=0.05))
        compressor.attach(optimizer, total_steps=2)
        for step in range(2):
            set_gradients(model, step)
            optimizer.step()
        compressor.finalize()
    found = saved(alone, sharded)
    other = gpt()
    fsdp_of(other, *other.blocks)
    load_compressed("many", other)
    assert saved(alone, other) == found
    tokens = torch.arange(12)[None]
    assert torch.equal(other(tokens), alone(tokens))


def a_process_dies() -> None:
    """Last: one that is killed while the file is written, and the others end with an error."""
    before, model = old_file(), fsdp(make_model())
    SoftQuantizer(model).finalize()
    form, calls = SharedTensor.form, []

    def killed(self: SharedTensor, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 2 and dist.get_rank() == 1:
            os._exit(9)
        return form(self, *arguments)

    with Patched(SharedTensor, "form", killed), pytest.raises(RuntimeError):
        save_compressed(model, "model")
    assert Path("model").read_bytes() == before
    if dist.get_rank() == 0:
        assert not list(Path().glob(".model*"))


# --- the processes ---


@pytest.fixture(scope="module", params=[3, 2])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes_of(__file__, request.param, tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("name", CHECKS)
def test_together(outcomes: Outcomes, name: str) -> None:
    assert_passed(outcomes, name)


def test_the_old_file_is_left_where_a_process_is_killed(outcomes: Outcomes) -> None:
    assert outcomes[0]["a_process_dies"] == ""
