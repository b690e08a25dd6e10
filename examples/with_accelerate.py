"""Soft quantization in a custom loop with accelerate; options are read from a YAML file."""

from __future__ import annotations

from pathlib import Path

import digits
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pysoftq import ClusteringConfig, save_compressed
from pysoftq.integrations.accelerate import prepare

EPOCHS = 30

train, test = digits.load()
model = digits.pretrained(train)
print(f"pretrained: {digits.accuracy(model, test):.1%} of the test images")

config = ClusteringConfig.from_yaml(Path(__file__).with_name("clustering.yaml"))
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
loader = DataLoader(train, batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
softq = prepare(accelerator, model, config, optimizer)  # included in save_state, load_state
for epoch in range(EPOCHS):
    softq.fraction = config.fraction(epoch, EPOCHS)
    for images, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(images), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # adds the force, once per two batches, after clipping
            optimizer.zero_grad()

print(softq.finalize(**config.cluster_options))
model = accelerator.unwrap_model(model)
save_compressed(model, "digits.safetensors")
print(f"compressed: {digits.accuracy(model, test):.1%} of the test images")
