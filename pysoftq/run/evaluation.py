"""Loss and accuracy of a network, as it is or with clusters in place of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pysoftq.clusters.clusters import Clusters
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.predictions import cross_entropy, hits, logits_of
from pysoftq.data.tasks import Data, Half
from pysoftq.interaction.pieces import is_dtensor
from pysoftq.run.processes import ALONE, Processes


def evaluate(
    model: nn.Module,
    data: Data,
    half: Half,
    processes: Processes = ALONE,
    *,
    varied: bool = False,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, both over all predictions, in evaluation mode.

    Several processes divide the batches between them.

    Args:
        model: the network.
        data: that a half is of.
        half: to measure on.
        processes: that do so together.
        varied: with copies of few images, as `Data.varied` makes them.
    """
    model.eval()
    device = next(model.parameters()).device
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    count = 0
    # What FSDP gathers in inference mode cannot be trained on afterwards.
    sharded = any(map(is_dtensor, model.parameters()))
    with torch.no_grad() if sharded else torch.inference_mode():
        for batch, answers in data.varied(half) if varied else data.ordered(half):
            part = processes.share.part(slice(0, len(answers)))
            inputs, targets = batch[part.place], answers[part.place]
            logits = logits_of(model(inputs))
            if part.counted:
                loss_sum += cross_entropy(logits.float(), targets, "sum")
                correct += hits(logits, targets)
                count += targets.numel()
    if not processes.several:
        return loss_sum.item() / count, correct.item() / count
    own = torch.tensor([loss_sum.item(), correct.item(), count], dtype=torch.float64)
    loss, right, predictions = processes.total(own).tolist()
    return loss / predictions, right / predictions


@contextmanager
@torch.no_grad()
def clustered(softq: SoftQuantizer, clusters: Mapping[str, Clusters]) -> Iterator[None]:
    """Within the block the coupled layers hold their clusters' values; restored bit for bit."""
    kept = [layer.weights.detach().clone() for layer in softq.layers]
    try:
        for layer in softq.layers:
            values = clusters[layer.name].weights()
            own = values if layer.piece is None else layer.piece.cut(values)
            layer.weights.copy_(own.view(layer.weights.shape))
        yield
    finally:
        for layer, weights in zip(softq.layers, kept, strict=True):
            layer.weights.copy_(weights)
