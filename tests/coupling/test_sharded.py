"""Weights that several processes hold in pieces are coupled as by one process, bit for bit.

One group of processes for each world size runs all checks. What each check raises is the outcome of
the test of its name.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from shards import (
    Descent,
    Outcomes,
    assert_equal,
    assert_passed,
    columns,
    flat,
    flat_gradients,
    flat_replicas,
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

import pysoftq
from pysoftq import SoftQuantizer, baselines, validate_clustering
from pysoftq.interaction.pieces import own_part

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    """A function that all processes run."""
    CHECKS[function.__name__] = function
    return function


def assert_trains_alike(shard: Callable[[nn.Module], nn.Module], **options: Any) -> None:
    """Steps, energies, clusters and final weights of a sharded model and of a whole one."""
    dtype = options.pop("dtype", torch.float32)
    steps = options.pop("steps", 3)
    alone, sharded = make_model(dtype), shard(make_model(dtype))
    quantizers = []
    for model in (alone, sharded):
        softq = SoftQuantizer(model, h=0.3, bins=2**10, seed=3, **options)
        optimizer = Descent(model.parameters())
        softq.attach(optimizer)
        for step in range(steps):
            set_gradients(model, step)
            optimizer.step()
        quantizers.append(softq)
    what = (shard.__name__, dtype, options)
    one, many = quantizers
    for layer, own in zip(one.layers, many.layers, strict=True):
        assert (layer.name, layer.sigma, layer.width) == (own.name, own.sigma, own.width), what
    assert_equal(weights_of(sharded), weights_of(alone), what)
    assert many.energy() == one.energy(), what
    for bits in (7, None):
        found, expected = many.clusters(bits), one.clusters(bits)
        for name, clusters in expected.items():
            assert torch.equal(found[name].codebook, clusters.codebook), (what, name)
            assert torch.equal(found[name].counts, clusters.counts), (what, name)
            assert torch.equal(found[name].indices, clusters.indices), (what, name)
    report = many.finalize(n_min=2, refinement="count")
    assert report == one.finalize(n_min=2, refinement="count"), what
    assert_equal(weights_of(sharded), weights_of(alone), what)


@check
def fsdp_trains_as_one_process() -> None:
    assert_trains_alike(fsdp, steps=20, fraction=0.37)
    assert_trains_alike(fsdp, fraction=0.37, dtype=torch.bfloat16)
    assert_trains_alike(offloaded, fraction=0.37)
    assert_trains_alike(fsdp, method="fft")
    assert_trains_alike(fsdp, granularity="channel", fraction=0.37)
    assert_trains_alike(fsdp, granularity="group:7")
    for options in ({"fraction": 0.37}, {"method": "fft"}, {"granularity": "group:7"}):
        assert_trains_alike(fsdp, potential="log", **options)


@check
def flattened_weights_train_as_in_one_process() -> None:
    if dist.get_world_size() == 3:
        assert_trains_alike(flat, steps=10, fraction=0.37)
        assert_trains_alike(flat, granularity="group:7", potential="log")
        assert_trains_alike(flat_replicas, fraction=0.37)
    else:
        assert_trains_alike(flat, fraction=0.37, dtype=torch.bfloat16)
        assert_trains_alike(flat_gradients, method="fft")
        assert_trains_alike(flat, granularity="channel", fraction=0.37)


@check
def tensor_parallel_trains_as_one_process() -> None:
    assert_trains_alike(rows)
    assert_trains_alike(columns, dtype=torch.bfloat16, fraction=0.37)
    assert_trains_alike(columns, granularity="channel", fraction=0.37)
    assert_trains_alike(columns, granularity="group:8")
    assert_trains_alike(columns, granularity="channel", potential="log", fraction=0.37)


@check
def fsdp_of_replicas_trains_as_one_process() -> None:
    assert_trains_alike(hybrid, fraction=0.37)
    assert_trains_alike(hybrid, granularity="channel")


def train_on_batches(
    shard: Callable[[nn.Module], nn.Module], make: Callable[[Any], torch.optim.Optimizer]
) -> tuple[SoftQuantizer, nn.Module]:
    """A training with accumulated gradients; FSDP takes the mean of equal ones."""
    model = shard(make_model())
    softq = SoftQuantizer(model, h=0.3, fraction=0.5)
    optimizer = make(model.parameters())
    softq.attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        for part in range(2):
            batch = torch.randn(8, 30, generator=torch.Generator().manual_seed(2 * step + part))
            model(batch).square().mean().backward()
        if not isinstance(optimizer, Descent):
            clip = getattr(model, "clip_grad_norm_", None)  # FSDP1 knows the norm of all parts
            clip(0.1) if clip else torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return softq, model


@check
def a_training_is_that_of_one_process() -> None:
    # The norm of all gradients, the vectors of AdamW and means of three are rounded otherwise.
    alone, model = train_on_batches(lambda model: model, torch.optim.AdamW)
    for shard in (fsdp, flat) if dist.get_world_size() > 2 else (fsdp,):
        softq, sharded = train_on_batches(shard, torch.optim.AdamW)
        assert softq.energy().total == pytest.approx(alone.energy().total, rel=1e-3)
        for name, values in weights_of(model).items():
            assert torch.allclose(weights_of(sharded)[name], values, atol=1e-3), name
    if dist.get_world_size() > 2:
        return
    alone, model = train_on_batches(lambda model: model, Descent)
    report = alone.finalize()
    for shard in (fsdp, flat, flat_gradients):
        softq, sharded = train_on_batches(shard, Descent)
        assert softq.finalize() == report
        assert_equal(weights_of(sharded), weights_of(model), shard.__name__)


@check
def zeros_are_kept_as_by_one_process() -> None:
    results = []
    for shard in (lambda model: model, fsdp, columns, flat):
        model = make_model()
        with torch.no_grad():
            model[0].weight[model[0].weight.abs() < 0.02] = 0
        model = shard(model)
        softq = SoftQuantizer(model, h=0.3)
        optimizer = Descent(model.parameters())
        softq.attach(optimizer)
        set_gradients(model, 0)
        optimizer.step()
        zeros = softq.state_dict()["zeros"]
        other = SoftQuantizer(model)
        other.load_state_dict(softq.state_dict())
        set_gradients(model, 1)
        other.add_force_()
        optimizer.zero_grad()
        assert_equal(other.state_dict()["zeros"], zeros, "restored")
        results.append((zeros, softq.finalize(), weights_of(model)))
    zeros, report, weights = results[0]
    assert "zeros kept" in report.tensors[0].rule
    for found, other_report, values in results[1:]:
        assert_equal(found, zeros, "zeros")
        assert other_report == report
        assert_equal(values, weights, "weights")


@check
def processes_that_differ_are_refused() -> None:
    rank = dist.get_rank()
    model = fsdp(make_model())
    message = refused(lambda: SoftQuantizer(model, potential=("log", "linear")[rank % 2]))
    assert "differ in potential: 'log' on rank 0, 'linear' on rank 1" in message
    message = refused(lambda: SoftQuantizer(model, seed=rank))
    assert message == "the processes differ in seed: 0 on rank 0, 1 on rank 1"
    assert "differ in h: -1" in refused(lambda: SoftQuantizer(model, h=rank - 1))
    message = refused(lambda: SoftQuantizer(model, exclude=() if rank else ("0.*",)))
    assert "differ in exclude" in message
    softq = SoftQuantizer(model)
    set_gradients(model, 0)
    before = {name: full(p.grad).clone() for name, p in model.named_parameters()}
    softq.fraction = 0.5 + rank / 10
    assert "differ in fraction: 0.5" in refused(softq.add_force_)
    after = {name: full(p.grad) for name, p in model.named_parameters()}
    assert_equal(after, before, "gradients")
    softq.fraction = 1.0
    model[0].weight.requires_grad_(rank > 0)
    assert "differ in the names, shapes" in refused(lambda: SoftQuantizer(model))


@check
def replicas_that_differ_are_refused() -> None:
    model = nn.parallel.DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    softq = SoftQuantizer(model, seed=dist.get_rank())
    message = refused(lambda: softq.attach(optimizer))
    assert message == "the processes differ in seed: 0 on rank 0, 1 on rank 1"
    same = SoftQuantizer(model, seed=4)
    same.attach(optimizer)
    state = {**same.state_dict(), "step": dist.get_rank()}
    assert "differ in step" in refused(lambda: same.load_state_dict(state))


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: full(gradient).clone() for name, gradient in gradients.items()}


@check
def weights_that_are_not_finite_are_refused_by_all() -> None:
    for shard, options in ((fsdp, {}), (fsdp, {"granularity": "channel"}), (flat, {})):
        alone, sharded = make_model(), shard(make_model())
        messages = []
        for model in (alone, sharded):
            softq = SoftQuantizer(model, h=0.3, **options)
            set_gradients(model, 0)
            with torch.no_grad():
                weights = own_part(model[4].weight)
                if model is alone or dist.get_rank() == 0:
                    weights.view(-1)[7] = torch.nan
            before = gradients_of(model)
            messages.append(refused(softq.add_force_))
            after = gradients_of(model)
            assert_equal(after, before, "gradients")
            messages.append(refused(softq.energy))
            messages.append(refused(lambda softq=softq: softq.clusters(7)))
            messages.append(refused(lambda model=model: SoftQuantizer(model)))
        assert messages[4:] == messages[:4]
        assert "layer '4.weight'" in messages[0]


@check
def sharding_after_construction_is_refused() -> None:
    for shard in (fsdp, flat):
        model = make_model()
        softq = SoftQuantizer(model)
        set_gradients(shard(model), 0)
        for call in (softq.add_force_, softq.energy, softq.finalize, softq.clusters):
            assert "layer '0.weight': its parameter has been replaced" in refused(call)


@check
def what_cannot_be_coupled_is_refused_by_name() -> None:
    from torch.distributed.tensor import DTensor, Partial

    model = make_model()
    part = DTensor.from_local(torch.randn(40, 71), mesh(), [Partial()])
    model[5].weight = nn.Parameter(part)
    message = refused(lambda: SoftQuantizer(model))
    assert message.startswith("layer '5.weight': its placement is Partial"), message


@check
def flattened_weights_are_refused_by_name() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"))
    message = refused(lambda: SoftQuantizer(model))
    assert "FullyShardedDataParallel has several weights in one parameter" in message
    assert message.startswith("layer '0.weight': "), message
    assert "use_orig_params=True" in message
    inside = flat(make_model()).module
    message = refused(lambda: SoftQuantizer(inside))
    assert message.startswith("layer '2.weight': its weights are in a FullyShardedDataParallel")


@check
def tensors_in_pieces_are_refused_where_they_are_not_served() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    from pysoftq.export import to_onnx, to_state_dict

    model = fsdp(make_model())
    weight = model[0].weight
    parallel = SoftQuantizer(rows(make_model()))
    calls: dict[str, Callable[[], Any]] = {
        "pair_energy": lambda: pysoftq.pair_energy(weight, 0.1),
        "pair_force": lambda: pysoftq.pair_force(weight, 0.1),
        "density": lambda: pysoftq.density(weight),
        "force": lambda: pysoftq.force(weight, 0.1),
        "identify": lambda: pysoftq.identify(weight),
        "unique": lambda: pysoftq.unique(weight),
        "kmeans": lambda: baselines.kmeans(weight, 4),
        "uniform": lambda: baselines.uniform(weight, 4),
        "ecvq": lambda: baselines.ecvq(weight, 4, 0.1),
        "histogram_equalize": lambda: baselines.histogram_equalize(weight, 4),
    }
    for name, call in calls.items():
        assert "a DTensor, of which each process holds a piece" in refused(call, TypeError), name
    flattened = flat(make_model())
    weight = flattened[0].weight
    for name, call in calls.items():
        assert "a part of a tensor that FSDP1 has flattened" in refused(call, TypeError), name
    for divided in (model, flattened):
        for path, export in {"a.safetensors": to_state_dict, "a.onnx": to_onnx}.items():
            message = refused(lambda m=divided, p=path, e=export: e(m, p))
            assert "several processes hold the weights of the model: export its file" in message
    with FullyShardedDataParallel.summon_full_params(flattened):
        assert pysoftq.unique(flattened[0].weight).size == 30 * 64
    assert "cannot be pickled" in refused(lambda: pickle.dumps(parallel), TypeError)


@check
def the_clusters_in_pieces_are_validated() -> None:
    model = fsdp(make_model())
    softq = SoftQuantizer(model)
    report = softq.finalize()
    validate_clustering(model, report)
    with torch.no_grad():
        if dist.get_rank() == 0:
            own_part(model[0].weight)[0, :2] = torch.tensor([5.0, 6.0])
    assert "'0.weight' has" in refused(lambda: validate_clustering(model, report))


@check
def an_evaluation_does_not_disturb() -> None:
    """FSDP's root keeps the weights that it gathered for a forward pass without a backward."""
    from torch.distributed.fsdp import fully_shard

    batch, whole = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)), make_model()
    alone = SoftQuantizer(whole)
    expected = alone.energy()
    alone.finalize()
    flattening = flat if dist.get_world_size() == 3 else flat_gradients
    for shard in (lambda model: fully_shard(model, mesh=mesh()), flattening):
        model = shard(make_model())
        softq = SoftQuantizer(model)
        with torch.no_grad():
            model(batch)
        assert softq.energy() == expected
        model(batch)
        other = SoftQuantizer(model)
        assert other.energy() == expected
        with torch.no_grad():
            model(batch)
            softq.finalize()
            assert torch.equal(model(batch), whole(batch))
        assert_equal(weights_of(model), weights_of(whole), "clustered")


@check
def checkpoints_make_no_step() -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = fsdp(make_model())
    optimizer = torch.optim.AdamW(model.parameters())
    softq = SoftQuantizer(model, h=1.0)
    softq.attach(optimizer)
    get_state_dict(model, optimizer)
    assert softq.step == 0
    for state in optimizer.state.values():
        assert not full(state["exp_avg"]).any()
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a warm-up begins so: its steps count
    set_gradients(model, 0)
    optimizer.step()
    assert softq.step == 1


def train(model: nn.Module, softq: SoftQuantizer, steps: range) -> None:
    optimizer = Descent(model.parameters())
    softq.attach(optimizer)
    for step in steps:
        set_gradients(model, step)
        optimizer.step()
    softq.detach()


@check
def a_state_is_resumed_by_any_number_of_processes() -> None:
    """Written by the first group of processes, read by all."""
    import torch.distributed.checkpoint as dcp

    from pysoftq.interaction.pieces import is_dtensor

    options = {"h": 0.3, "fraction": 0.37, "granularity": "channel", "sparsity": "keep"}
    alone = make_model()
    with torch.no_grad():
        alone[4].weight[::3] = 0
    sharded = make_model()
    sharded.load_state_dict(alone.state_dict())
    fsdp(sharded)
    assert is_dtensor(sharded[0].weight)
    one = SoftQuantizer(alone, seed=3, **options)
    train(alone, one, range(2))
    folder = Path("state")
    if not folder.exists():
        dist.barrier()
        many = SoftQuantizer(sharded, seed=3, **options)
        train(sharded, many, range(2))
        dcp.save({"model": sharded.state_dict(), "softq": many.state_dict()}, checkpoint_id=folder)
        dist.barrier()
    many = SoftQuantizer(sharded, **options)
    state = {"model": sharded.state_dict(), "softq": many.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    sharded.load_state_dict(state["model"])
    many.load_state_dict(state["softq"])
    assert (many.step, many.seed, many.fraction) == (2, 3, 0.37)
    assert_equal(weights_of(sharded), weights_of(alone), "loaded")
    train(alone, one, range(2, 4))
    train(sharded, many, range(2, 4))
    assert_equal(weights_of(sharded), weights_of(alone), "resumed")
    assert many.finalize() == one.finalize()
    assert_equal(weights_of(sharded), weights_of(alone), "clustered")


def a_process_dies() -> None:
    """Last: the others end with an error."""
    model = fsdp(make_model())
    softq = SoftQuantizer(model)
    set_gradients(model, 0)
    if dist.get_rank() == 1:
        os._exit(9)
    with pytest.raises(RuntimeError):
        softq.add_force_()


# --- the processes ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module", params=[3, 2])
def outcomes(request: pytest.FixtureRequest, folder: Path) -> Outcomes:
    return outcomes_of(__file__, request.param, folder)


@pytest.mark.parametrize("name", CHECKS)
def test_together(outcomes: Outcomes, name: str) -> None:
    assert_passed(outcomes, name)


def test_the_others_end_with_an_error_where_a_process_dies(outcomes: Outcomes) -> None:
    assert outcomes[0]["a_process_dies"] == ""


@pytest.mark.filterwarnings("ignore:layer")  # one has a single weight in each channel
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_resumes_what_several_have_saved(outcomes: Outcomes, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    options = {"h": 0.3, "fraction": 0.37, "granularity": "channel", "sparsity": "keep"}
    model, resumed = make_model(), make_model()
    with torch.no_grad():
        model[4].weight[::3] = 0
    softq = SoftQuantizer(model, seed=3, **options)
    train(model, softq, range(4))
    with torch.no_grad():
        resumed[4].weight[::3] = 0
    other = SoftQuantizer(resumed, **options)
    state = {"model": resumed.state_dict(), "softq": other.state_dict()}
    dcp.load(state, checkpoint_id=folder / "state", no_dist=True)
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["softq"])
    train(resumed, other, range(2, 4))
    assert_equal(weights_of(resumed), weights_of(model), "resumed")
    assert other.finalize() == softq.finalize()
