"""Lightning, Hugging Face's Trainer and accelerate in two processes end as a plain loop does.

One group of processes runs all checks. With FSDP2 both train on the same batches: the mean of their
gradients is the gradient, bit by bit. With DDP they train on their own batches, with accumulated
gradients, and resume from what the first process saved.
"""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from data_parallel import (
    train_as_a_plain_loop,
    with_accelerate,
    with_lightning,
    with_transformers,
)
from shards import Check, Outcomes, assert_equal, assert_passed, mesh, outcomes_of, weights_of
from torch import nn
from torch.utils.data import DataLoader
from trainers import BATCH, CONFIG, Digits, Rows, load_data, make_optimizer

from pysoftq import load_compressed, prepare, save_compressed, validate_clustering
from pysoftq.interaction.pieces import is_divided, is_dtensor

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CHECKS: dict[str, Check] = {}
EPOCHS = 2


def check(function: Check) -> Check:
    """A function that all processes run."""
    CHECKS[function.__name__] = function
    return function


def pretrained() -> Digits:
    torch.manual_seed(0)
    return Digits()


def pruned() -> Digits:
    model = pretrained()
    with torch.no_grad():
        model.net[0].weight[:, :9] = 0
    return model


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh())


@contextmanager
def environment() -> Iterator[None]:
    """What torchrun would set."""
    before = dict(os.environ)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "SLURM_JOB_NAME": "bash"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def plain(make: Callable[[], Digits]) -> Digits:
    """Trained and clustered in a loop of one process."""
    model, data = make(), load_data()
    softq, optimizer = prepare(model, CONFIG), make_optimizer(model)
    softq.attach(optimizer)
    total, step = EPOCHS * len(data) // BATCH, 0
    for _ in range(EPOCHS):
        for images, labels in DataLoader(data, BATCH):
            softq.fraction = CONFIG.fraction(step, total)
            optimizer.zero_grad()
            model(images, labels)["loss"].backward()
            optimizer.step()
            step += 1
    softq.finalize(**CONFIG.cluster_options)
    return model


def assert_trained(model: nn.Module, report: Any, make: Callable[[], Digits] = pretrained) -> None:
    """The model has the clusters of the plain loop, in pieces, and the file of one process."""
    expected = plain(make)
    assert all(map(is_divided, model.parameters()))
    assert_equal(weights_of(model), weights_of(expected), "trained")
    validate_clustering(model, report)
    save_compressed(model, "many")
    if dist.get_rank() == 0:
        save_compressed(expected, "one")
        assert Path("one").read_bytes() == Path("many").read_bytes()
    other = load_compressed("many", sharded(pretrained()))
    assert_equal(weights_of(other), weights_of(expected), "loaded")
    dist.barrier()


@check
def lightning_trains_as_one_process() -> None:
    from lightning import pytorch as lightning
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from pysoftq.integrations.lightning import SoftQuantizationCallback

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = pretrained()

        def configure_model(self) -> None:
            if not is_dtensor(next(self.parameters())):
                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(*batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.model)

    overrides = {f"model.{pattern}": values for pattern, values in CONFIG.override.items()}
    config = copy.copy(CONFIG).model_copy(update={"override": overrides})
    callback = SoftQuantizationCallback(config)
    with environment():
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=dist.get_world_size(),
            strategy=ModelParallelStrategy(dist.get_world_size(), tensor_parallel_size=1),
            max_epochs=EPOCHS,
            callbacks=[callback],
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        module = Module()
        trainer.fit(module, DataLoader(load_data(), BATCH))
    assert_trained(module.model, renamed(callback.report))


def renamed(report: Any) -> Any:
    """Of the model inside of the module."""
    from dataclasses import replace

    layers = [replace(row, name=row.name.removeprefix("model.")) for row in report.layers]
    return replace(report, layers=tuple(layers))


@contextmanager
def accelerate_alone() -> Iterator[None]:
    """What accelerate keeps for a process is that of one check."""
    from accelerate.state import AcceleratorState

    with environment():
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


def pretend_accelerators() -> None:
    """accelerate shards models on accelerators only: the CPU passes for one."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


@contextmanager
def flattened_on_the_cpu() -> Iterator[None]:
    """FSDP1 takes "cpu", where accelerate asks for the device with a number."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    make = FullyShardedDataParallel.__init__

    def made(self: nn.Module, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **{**options, "device_id": torch.device("cpu")})

    FullyShardedDataParallel.__init__ = made
    try:
        yield
    finally:
        FullyShardedDataParallel.__init__ = make


@check
def accelerate_trains_as_one_process() -> None:
    train_with_accelerate(fsdp_version=2)
    with flattened_on_the_cpu():
        train_with_accelerate(fsdp_version=1, use_orig_params=True)


def train_with_accelerate(**options: Any) -> None:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    from pysoftq.integrations.accelerate import prepare as couple

    with accelerate_alone():
        pretend_accelerators()
        plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="no_wrap", **options)
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        model = pretrained()
        model, optimizer = accelerator.prepare(model, make_optimizer(model))
        softq = couple(accelerator, model, CONFIG, optimizer)
        data, step = load_data(), 0
        total = EPOCHS * len(data) // BATCH
        for _ in range(EPOCHS):
            for images, labels in DataLoader(data, BATCH):
                softq.fraction = CONFIG.fraction(step, total)
                optimizer.zero_grad()
                accelerator.backward(model(images, labels)["loss"])
                optimizer.step()
                step += 1
        report = softq.finalize(**CONFIG.cluster_options)
    assert_trained(model, report)


@check
def the_trainer_of_transformers_trains_as_one_process() -> None:
    train_with_the_trainer({"fsdp_version": 2, "auto_wrap_policy": "NO_WRAP"})


@check
def the_trainer_of_transformers_trains_flattened_weights() -> None:
    with flattened_on_the_cpu():
        train_with_the_trainer(
            {
                "fsdp_version": 1,
                "use_orig_params": True,
                "auto_wrap_policy": "NO_WRAP",
                "sync_module_states": False,
                "cpu_ram_efficient_loading": False,
            }
        )


def train_with_the_trainer(fsdp: dict[str, Any]) -> None:
    import transformers

    from pysoftq.integrations.transformers import SoftQuantizationCallback

    class InOrder(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, BATCH, collate_fn=self.data_collator)

    callback = SoftQuantizationCallback(CONFIG)
    model = pruned()
    with accelerate_alone():
        arguments = transformers.TrainingArguments(
            "trainer",
            per_device_train_batch_size=BATCH,
            max_grad_norm=0.0,
            num_train_epochs=EPOCHS,
            lr_scheduler_type="constant",
            save_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            fsdp=True,
            fsdp_config=fsdp,
        )
        assert arguments.device.type == "cpu"
        pretend_accelerators()
        trainer = InOrder(
            model,
            arguments,
            train_dataset=Rows(load_data()),
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
            callbacks=[callback],
        )
        trainer.train()
        steps = EPOCHS * len(load_data()) // BATCH
        checkpoint = f"trainer/checkpoint-{steps // EPOCHS}"
        first = {name: tensor.clone() for name, tensor in weights_of(model).items()}
        trainer.train(resume_from_checkpoint=checkpoint)
        assert_equal(weights_of(model), first, "resumed")
    assert_trained(model, callback.report, pruned)


# --- the same weights in both processes ---


@check
def lightning_trains_replicas_as_a_plain_loop() -> None:
    with environment():
        train_as_a_plain_loop(with_lightning, Path("lightning"))


@check
def accelerate_trains_replicas_as_a_plain_loop() -> None:
    with accelerate_alone():
        train_as_a_plain_loop(with_accelerate, Path("accelerate"))


@check
def the_trainer_of_transformers_trains_replicas_as_a_plain_loop() -> None:
    with accelerate_alone():
        train_as_a_plain_loop(with_transformers, Path("transformers"))


def a_process_dies() -> None:
    """Nothing more."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    for library in ("lightning", "transformers", "accelerate"):
        pytest.importorskip(library)
    return outcomes_of(__file__, 2, tmp_path_factory.mktemp("trainers"))


@pytest.mark.parametrize("name", CHECKS)
def test_together(outcomes: Outcomes, name: str) -> None:
    assert_passed(outcomes, name)
