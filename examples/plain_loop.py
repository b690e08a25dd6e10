"""Soft quantization in a custom training loop."""

from __future__ import annotations

import digits
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pysoftq import ClusteringConfig, prepare, save_compressed

EPOCHS = 30

train, test = digits.load()
model = digits.pretrained(train)
print(f"pretrained: {digits.accuracy(model, test):.1%} of the test images")

config = ClusteringConfig(h=0.1, w=0.4, override={"4.weight": {"w": 0.3}})
softq = prepare(model, config)  # measures the size and standard deviation of each layer
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
softq.attach(optimizer)  # adds the force of the coupling to the gradients of each step
for epoch in range(EPOCHS):
    softq.fraction = config.fraction(epoch, EPOCHS)
    for images, labels in DataLoader(train, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

print(softq.finalize(**config.cluster_options))  # writes the clusters into the model
save_compressed(model, "digits.safetensors")
print(f"compressed: {digits.accuracy(model, test):.1%} of the test images")
