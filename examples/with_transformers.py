"""Soft quantization as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import digits
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from pysoftq import ClusteringConfig, save_compressed
from pysoftq.integrations.transformers import SoftQuantizationCallback


class Classifier(nn.Module):
    """A network that returns its loss, as the models of transformers do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


train, test = digits.load()
model = digits.pretrained(train)
print(f"pretrained: {digits.accuracy(model, test):.1%} of the test images")

config = ClusteringConfig(h=0.1, w=0.4, override={"*.4.weight": {"w": 0.3}})
callback = SoftQuantizationCallback(config)
classifier = Classifier(model)
optimizer = torch.optim.SGD(classifier.parameters(), lr=0.01, momentum=0.9, nesterov=True)
arguments = TrainingArguments(
    "digits",
    num_train_epochs=30,
    per_device_train_batch_size=64,
    lr_scheduler_type="constant",
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
trainer = Trainer(
    classifier,
    arguments,
    train_dataset=[{"images": image, "labels": label} for image, label in train],
    optimizers=(optimizer, None),
    callbacks=[callback],
)
trainer.train()

print(callback.report)
save_compressed(model, "digits.safetensors")
print(f"compressed: {digits.accuracy(model, test):.1%} of the test images")
