"""The predictions of a network, compared with their targets."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def logits_of(output: Any) -> Tensor:
    """The logits (B, …, classes) in what a model returned: itself, or its ``logits``."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits (B, …, classes) and targets (B, …), over all predictions."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Number of right predictions, left on the device."""
    return (logits.argmax(-1) == targets).sum()
