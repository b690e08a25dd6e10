"""Loss and accuracy of a network, as it is or with clusters in place of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.written import forget_clusters, write_clusters
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.predictions import cross_entropy, hits, logits_of
from pysoftq.data.tasks import Data, Half


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, half: Half) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, both over all predictions, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    count = 0
    for inputs, targets in data.ordered(half):
        logits = logits_of(model(inputs))
        loss_sum += cross_entropy(logits, targets, "sum")
        correct += hits(logits, targets)
        count += targets.numel()
    return loss_sum.item() / count, correct.item() / count


@contextmanager
def clustered(softq: SoftQuantizer, clusters: Mapping[str, Clusters]) -> Iterator[None]:
    """Within the block the coupled layers hold their clusters' values; restored bit for bit."""
    kept = [layer.parameter.detach().clone() for layer in softq.layers]
    try:
        write_clusters(softq.model, clusters)
        yield
    finally:
        with torch.no_grad():
            for layer, weights in zip(softq.layers, kept, strict=True):
                layer.parameter.copy_(weights)
        forget_clusters(softq.model)
