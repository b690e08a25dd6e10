"""The quality of a network, measured in the midst of its training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch

from pysoftq.coupling.quantizer import SoftQuantizer

Evaluate = Callable[[], float]


def measured(softq: SoftQuantizer, evaluate: Evaluate) -> float:
    """What `evaluate` returns in evaluation mode; the mean over the processes that train together.

    Modes of the modules and random numbers are as before afterwards.

    Raises:
        ValueError: it is no number.
    """
    modules = list(softq.model.modules())
    modes = [module.training for module in modules]
    softq.model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            found = float(evaluate())
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    quality = statistics.fmean(softq.ranks.collected(found))
    if math.isnan(quality):
        raise ValueError("`evaluate` must return a number, got NaN")
    return quality
