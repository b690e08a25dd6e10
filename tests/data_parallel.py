"""Training in several processes by an integration, and by a plain loop on the same batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from trainers import (
    ACCUMULATE,
    BATCH,
    CLIP,
    CONFIG,
    EPOCHS,
    Digits,
    accelerate_train,
    clustered,
    lightning_module,
    lightning_trainer,
    load_data,
    make_optimizer,
    make_trainer,
)

from pysoftq import CompressionReport, SoftQuantizer
from pysoftq import prepare as prepare_model

Batches = Sequence[list[torch.Tensor]]
Trained = tuple[nn.Module, nn.Module, SoftQuantizer, CompressionReport, Batches]

DATA = load_data()


def pretrained() -> Digits:
    """The weights of the first process count; the others begin with their own."""
    torch.manual_seed(dist.get_rank())
    return Digits()


def with_lightning(folder: Path) -> Trained:
    import lightning.pytorch as lightning

    from pysoftq.integrations.lightning import SoftQuantizationCallback

    def train(model: Digits, *callbacks: Any, **options: Any) -> None:
        trainer = lightning_trainer(
            lightning,
            folder,
            callbacks=list(callbacks),
            enable_checkpointing=len(callbacks) > 1,
            strategy="ddp",
            devices=dist.get_world_size(),
            use_distributed_sampler=False,  # Lightning's own would shuffle
        )
        trainer.fit(lightning_module(lightning, model), loader, **options)

    loader = DataLoader(DATA, BATCH, sampler=DistributedSampler(DATA, shuffle=False))
    model, resumed = pretrained(), Digits()
    saving = lightning.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    train(model, SoftQuantizationCallback(CONFIG, finalize=False), saving)
    callback = SoftQuantizationCallback(CONFIG)
    train(resumed, callback, ckpt_path=folder / "epoch=0.ckpt")
    return model, resumed, callback.softq, callback.report, list(loader)


def with_transformers(folder: Path) -> Trained:
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    model, resumed = pretrained(), Digits()
    callback = SoftQuantizationCallback(CONFIG, finalize=False)
    make_trainer(model, DATA, folder, callbacks=[callback]).train()
    callback = SoftQuantizationCallback(CONFIG)
    trainer = make_trainer(resumed, DATA, folder, callbacks=[callback])
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    return model, resumed, callback.softq, callback.report, whole_batches()


def with_accelerate(folder: Path) -> Trained:
    accelerate_train(pretrained(), DATA, folder, 0, 1)
    resumed, softq = accelerate_train(Digits(), DATA, folder, 1, EPOCHS)
    trained = copy.deepcopy(resumed)
    return trained, resumed, softq, softq.finalize(**CONFIG.cluster_options), whole_batches()


def whole_batches() -> Batches:
    return list(DataLoader(DATA, BATCH))[dist.get_rank() :: dist.get_world_size()]


def plain(batches: Batches) -> nn.Module:
    """Trained by a loop that knows of no other library."""
    model = DistributedDataParallel(pretrained())
    softq, optimizer = prepare_model(model, CONFIG), make_optimizer(model)
    softq.attach(optimizer)
    steps = len(batches) // ACCUMULATE
    for step in range(EPOCHS * steps):
        softq.fraction = CONFIG.fraction(step, EPOCHS * steps)
        first, last = batches[step % steps * ACCUMULATE :][:ACCUMULATE]
        with model.no_sync():
            (model(*first)["loss"] / ACCUMULATE).backward()
        (model(*last)["loss"] / ACCUMULATE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return model.module


def train_as_a_plain_loop(train: Callable[[Path], Trained], folder: Path) -> None:
    """The library's weights are those of the plain loop, and the same in all processes."""
    trained, resumed, softq, report, batches = train(folder)
    expected = plain(batches)
    torch.manual_seed(0)
    assert softq.step == 12
    assert [row.name for row in report.tensors] == list(expected.state_dict())
    merged = clustered(expected, Digits())
    for found, loop in ((trained, expected), (resumed, merged)):
        for name, weights in found.state_dict().items():
            assert torch.equal(weights, loop.state_dict()[name]), name
            dist.broadcast(weights, src=0)
            assert torch.equal(weights, loop.state_dict()[name]), (name, "of another process")
