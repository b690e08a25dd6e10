"""Soft quantization in a loop of your own: a few lines more than without it."""

from __future__ import annotations

import digits
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pysoftq import ClusteringConfig, finalize, prepare, save_compressed

EPOCHS = 30

train, test = digits.load()
model = digits.pretrained(train)
print(f"pretrained: {digits.accuracy(model, test):.1%} of the test images")

config = ClusteringConfig(h=0.1, w=0.4, n_min=1, override={"4.weight": {"w": 0.3}})
softq = prepare(model, config)  # measures each layer now
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
softq.attach(optimizer)  # from now on, each step begins with the coupling's force
for epoch in range(EPOCHS):
    softq.fraction = config.fraction(epoch, EPOCHS)
    for images, labels in DataLoader(train, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

print(finalize(softq, config))  # clusters, written into the model and checked
save_compressed(model, "digits.safetensors")
print(f"compressed: {digits.accuracy(model, test):.1%} of the test images")
