"""A network, its data, and the trainers of other libraries, for tests of the integrations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pysoftq import ClusteringConfig, Compressor, SoftQuantizer, Target, prepare

BATCH, ACCUMULATE, CLIP, EPOCHS = 32, 2, 0.5, 3

CONFIG = ClusteringConfig(
    h=0.3, w=0.5, fraction_start=0.3, override={"net.2*": {"w": 0.3}, "net*": {"h": 0.2}}, n_min=2
)

QUICK = ClusteringConfig(bits=6)  # few bins, which merge at once


class Digits(nn.Module):
    """A classifier that takes what either trainer gives, and tells its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Each image with its label, by name."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        images, labels = self.data[index]
        return {"images": images, "labels": labels}


def load_data() -> TensorDataset:
    digits = load_digits()
    images = torch.tensor(digits.data[:512] / 16, dtype=torch.float32)
    return TensorDataset(images, torch.tensor(digits.target[:512]))


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batches(data: TensorDataset) -> Iterator[tuple[list[torch.Tensor], bool]]:
    """Batches in order, and whether the optimizer steps after this one."""
    for number, batch in enumerate(DataLoader(data, BATCH), 1):
        yield batch, number % ACCUMULATE == 0


def clustered(model: nn.Module, pretrained: nn.Module) -> nn.Module:
    """What `finalize` makes of trained weights, whose scales are those of the pretrained ones."""
    model = copy.deepcopy(model)
    softq = prepare(model, CONFIG)
    softq.load_state_dict(prepare(pretrained, CONFIG).state_dict())
    softq.finalize(**CONFIG.cluster_options)
    return model


def lightning_trainer(lightning: Any, folder: Path, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        gradient_clip_val=CLIP,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": ACCUMULATE,
            "enable_checkpointing": False,
            **options,
        },
    )


def lightning_module(lightning: Any, model: Digits) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.net

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        test_step = validation_step = predict_step = training_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self)

    return Module()


# --- transformers ---
def make_trainer(model: Digits, data: TensorDataset, folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(data)

    callbacks = options.pop("callbacks")
    evaluated = options.pop("eval_dataset", None)
    arguments = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=CLIP,
        num_train_epochs=EPOCHS,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return InOrder(
        model,
        arguments,
        train_dataset=Rows(data),
        eval_dataset=evaluated and Rows(evaluated),
        optimizers=(make_optimizer(model), None),
        callbacks=callbacks,
    )


# --- accelerate ---
def accelerate_train(
    model: Digits, data: TensorDataset, folder: Path, start: int, stop: int
) -> tuple[nn.Module, SoftQuantizer]:
    """Some epochs, from the state in the folder but for the first; saves the state at the end."""
    from accelerate import Accelerator

    from pysoftq.integrations.accelerate import prepare

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    wrapped, optimizer, loader = accelerator.prepare(
        model, make_optimizer(model), DataLoader(data, BATCH)
    )
    softq = prepare(accelerator, wrapped, CONFIG, optimizer)
    if start:
        accelerator.load_state(str(folder / "state"))
    total = EPOCHS * len(loader) // ACCUMULATE
    for _ in range(start, stop):
        for images, labels in loader:
            with accelerator.accumulate(wrapped):
                softq.fraction = CONFIG.fraction(softq.step, total)
                accelerator.backward(wrapped(images, labels)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(str(folder / "state"))
    accelerator.wait_for_everyone()
    return accelerator.unwrap_model(wrapped), softq


def accelerate_compress(
    model: Digits, data: TensorDataset, folder: Path, start: int, stop: int, target: Target
) -> tuple[nn.Module, Compressor]:
    """As `accelerate_train`, to a target."""
    from accelerate import Accelerator

    from pysoftq.integrations.accelerate import prepare_compressor

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    wrapped, optimizer, loader = accelerator.prepare(
        model, make_optimizer(model), DataLoader(data, BATCH)
    )
    compressor = prepare_compressor(
        accelerator,
        wrapped,
        target,
        optimizer,
        total_steps=EPOCHS * len(loader) // ACCUMULATE,
        config=QUICK,
    )
    if start:
        accelerator.load_state(str(folder / "state"))
    for _ in range(start, stop):
        for images, labels in loader:
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(images, labels)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(str(folder / "state"))
    return accelerator.unwrap_model(wrapped), compressor
