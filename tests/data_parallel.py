"""One of several processes that train by integrations: ``torchrun data_parallel.py FOLDER NAME...``.

Writes the weights that a library ends with, and those of a plain loop on the same batches, to
FOLDER/NAME/RANK.pt.
"""

from __future__ import annotations

import copy
import os
import sys
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
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def pretrained() -> Digits:
    """The weights of the first process count; the others begin with their own."""
    torch.manual_seed(RANK)
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
            devices=WORLD,
            use_distributed_sampler=False,  # Lightning's own would shuffle
        )
        trainer.fit(lightning_module(lightning, model), loader, **options)

    loader = DataLoader(DATA, BATCH, sampler=DistributedSampler(DATA, WORLD, RANK, shuffle=False))
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


LIBRARIES = {
    "lightning": with_lightning,
    "transformers": with_transformers,
    "accelerate": with_accelerate,
}


def whole_batches() -> Batches:
    return list(DataLoader(DATA, BATCH))[RANK::WORLD]


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


def results(train: Callable[[Path], Trained], folder: Path) -> dict[str, Any]:
    trained, resumed, softq, report, batches = train(folder)
    expected = plain(batches)
    torch.manual_seed(0)
    weights = {
        "trained": trained.state_dict(),
        "plain": expected.state_dict(),
        "clustered": resumed.state_dict(),
        "plain, clustered": clustered(expected, Digits()).state_dict(),
    }
    names = [row.name for row in report.tensors]
    return {"weights": weights, "step": softq.step, "names": names}


def main(folder: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # every library uses the group that is there
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        torch.save(results(LIBRARIES[name], folder / name), folder / name / f"{RANK}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
