"""The quality of a network, measured in the midst of its training."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable

import torch

from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.errors import QualityWarning

Evaluate = Callable[[], float]


def measured(softq: SoftQuantizer, evaluate: Evaluate) -> float:
    """What `evaluate` returns (`returned`); NaN, as of a network that is lost, becomes -inf.

    Warns:
        QualityWarning: it is NaN.

    Raises:
        TypeError: it is no number.
    """
    quality = returned(softq, evaluate)
    if math.isnan(quality):
        warnings.warn(
            "`evaluate` has returned NaN, which counts as the worst quality",
            QualityWarning,
            stacklevel=2,
        )
        return -math.inf
    return quality


def returned(softq: SoftQuantizer, evaluate: Evaluate) -> float:
    """What `evaluate` returns in evaluation mode; the mean over the processes that train together.

    Modes of the modules and random numbers are as before afterwards.

    Raises:
        TypeError: it is no number.
    """
    modules = list(softq.model.modules())
    modes = [module.training for module in modules]
    devices = {p.device for p in softq.model.parameters() if p.device.type == "cuda"}
    softq.model.eval()
    try:
        with torch.random.fork_rng(list(devices)), torch.no_grad():
            found = softq.ranks.attempt(lambda: _number(evaluate()))
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return statistics.fmean(softq.ranks.collected(found))


def _number(found: object) -> float:
    """What `evaluate` has returned, also as a tensor or array of one number."""
    if not isinstance(found, str):
        try:
            return float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            pass
    shape = getattr(found, "shape", None)
    kind = type(found).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
    raise TypeError(f"`evaluate` must return a number, got {kind}")
