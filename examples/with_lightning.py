"""Soft quantization as a callback of Lightning's Trainer."""

from __future__ import annotations

import digits
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pysoftq import ClusteringConfig, save_compressed
from pysoftq.integrations.lightning import SoftQuantizationCallback


class Classifier(LightningModule):
    """A network, its loss, its optimizer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer; any optimizer of PyTorch works."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, nesterov=True)


train, test = digits.load()
model = digits.pretrained(train)
print(f"pretrained: {digits.accuracy(model, test):.1%} of the test images")

# Parameter names of the LightningModule: model.0.weight, model.2.weight, model.4.weight.
config = ClusteringConfig(h=0.1, w=0.4, override={"*.4.weight": {"w": 0.3}})
callback = SoftQuantizationCallback(config)
trainer = Trainer(
    max_epochs=30,
    callbacks=[callback],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
)
trainer.fit(Classifier(model), DataLoader(train, batch_size=64, shuffle=True))

print(callback.report)
save_compressed(model, "digits.safetensors")
print(f"compressed: {digits.accuracy(model, test):.1%} of the test images")
