"""Loss and accuracy of a network."""

from __future__ import annotations

import torch
from torch import nn

from pysoftq.data.tasks import Data, Half, cross_entropy, hits, logits_of


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
