"""Which parameters of a model are coupled: weights with two or more dimensions, chosen by name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMALIZATION = (_NormBase, nn.LayerNorm, nn.GroupNorm)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_patterns(patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    """One pattern, several or none, as a tuple."""
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def select(
    model: nn.Module,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Choose the parameters to couple; a tied parameter appears once, under its first name.

    Args:
        model: any module.
        include: shell-style patterns of parameter names ("layer1.*"); None takes all weights.
        exclude: patterns of names to leave out, stronger than include.

    Returns:
        The parameters chosen, by name in model order, and the reason for each one left out.

    Raises:
        ValueError: a pattern matches no weight that could be coupled.
    """
    wanted, unwanted = as_patterns(include), as_patterns(exclude)
    candidates: dict[str, nn.Parameter] = {}
    excluded: dict[str, str] = {}
    normalization = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMALIZATION) or type(module).__name__.endswith("RMSNorm")
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        reason = _unfit(name, parameter, id(parameter) in normalization)
        if reason:
            excluded[name] = reason
        else:
            candidates[name] = parameter
    for option, patterns in (("include", wanted), ("exclude", unwanted)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in candidates):
                raise ValueError(
                    f"{option} pattern {pattern!r} matches no weight that could be coupled; "
                    f"there are: {', '.join(candidates) or 'none'}"
                )
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in candidates.items():
        if wanted and not any(fnmatchcase(name, pattern) for pattern in wanted):
            excluded[name] = "not matched by include"
        elif match := next((p for p in unwanted if fnmatchcase(name, p)), None):
            excluded[name] = f"exclude pattern {match!r}"
        else:
            chosen[name] = parameter
    return chosen, excluded


def _unfit(name: str, parameter: nn.Parameter, normalization: bool) -> str:
    if isinstance(parameter, nn.UninitializedParameter):
        return "not initialized yet"
    if normalization:
        return "normalization"
    if name.rpartition(".")[2] == "bias":
        return "bias"
    if parameter.dim() < 2:
        return f"{parameter.dim()} dimension{'s' if parameter.dim() != 1 else ''}"
    if parameter.dtype not in DTYPES:
        return f"dtype {parameter.dtype}"
    if not parameter.requires_grad:
        return "frozen (requires_grad is False)"
    return ""
