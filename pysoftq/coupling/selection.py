"""Which parameters of a model are coupled: weights with two or more dimensions, chosen by name."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pysoftq.coupling.roles import roles
from pysoftq.errors import abridged
from pysoftq.interaction.arrays import special_kind
from pysoftq.interaction.pieces import own_part, shape_of
from pysoftq.models.sharding import refuse_flattened
from pysoftq.models.wrappers import unwrapped

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_patterns(patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    """One pattern, several or none, as a tuple."""
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def first_match(patterns: Iterable[str], name: str) -> str | None:
    """The first of the patterns that matches a name."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern stands for a name, or is that name, which may contain brackets."""
    return name == pattern or fnmatchcase(name, pattern)


def select(
    model: nn.Module,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Choose the parameters to couple; a tied parameter appears once, under its first name.

    A warning names each trained weight that cannot be coupled as it is: computed by a
    parametrization, not initialized yet, or of a tensor subclass such as torchao's.

    Args:
        model: any module; of a wrapped one the parameters have the names of the model inside.
        include: shell-style patterns of parameter names ("layer1.*"); None takes all weights.
            Position embeddings, tokens and scales are taken only under their full names.
        exclude: patterns of names to leave out, stronger than include.

    Returns:
        The parameters chosen, by name in model order, and the reason for each one left out.

    Raises:
        ValueError: a pattern matches no weight that could be coupled, or the parameters are not the
            weights (FSDP1 without use_orig_params, DeepSpeed ZeRO-3).
    """
    refuse_flattened(model)
    model = unwrapped(model)
    include_patterns, exclude_patterns = as_patterns(include), as_patterns(exclude)
    candidates: dict[str, nn.Parameter] = {}
    excluded: dict[str, str] = {}
    by_role: list[str] = []
    role_of = roles(model)
    reparametrized = {id(parameter) for parameter in _reparametrized(model)}
    for name, parameter in model.named_parameters():
        role = role_of.get(id(parameter), "")
        reason = _unfit(name, parameter, role == "normalization")
        if not reason and role and name not in include_patterns:
            reason = role
            by_role.append(name)
        if not reason and id(parameter) in reparametrized:
            reason = "parametrized: the layer's weights are computed from it"
        if reason.startswith(("parametrized", "not initialized", "special")):
            warnings.warn(f"parameter '{name}' is not coupled: {reason}", stacklevel=3)
        if reason:
            excluded[name] = reason
        else:
            candidates[name] = parameter
    _refuse_unmatched("include", include_patterns, candidates)
    _refuse_unmatched("exclude", exclude_patterns, (*candidates, *by_role))
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in candidates.items():
        if include_patterns and first_match(include_patterns, name) is None:
            excluded[name] = "not matched by include"
        elif match := first_match(exclude_patterns, name):
            excluded[name] = f"exclude pattern {match!r}"
        else:
            chosen[name] = parameter
    return chosen, excluded


def _refuse_unmatched(option: str, patterns: Iterable[str], names: Collection[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f"{option} pattern {pattern!r} matches no weight that could be coupled; "
                f"there are: {abridged(list(names)) or 'none'}"
            )


def _reparametrized(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that are not weights themselves; a layer's weights are computed from them."""
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            yield from module.parameters()
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                weight = hook.name
            elif isinstance(hook, BasePruningMethod):
                weight = hook._tensor_name
            else:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith(f"{weight}_"):
                    yield parameter


def match_override(patterns: Collection[str], names: Collection[str]) -> dict[str, str]:
    """The pattern that decides for a name: the first one that matches; names without one are left.

    Raises:
        ValueError: a pattern decides for no name.
    """
    deciding: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in names if matches(name, pattern)]
        if not matched:
            raise ValueError(
                f"override pattern {pattern!r} matches no coupled weight; "
                f"there are: {abridged(list(names)) or 'none'}"
            )
        if all(name in deciding for name in matched):
            earlier = dict.fromkeys(repr(deciding[name]) for name in matched)
            raise ValueError(
                f"override pattern {pattern!r} comes too late: all that it matches is taken by "
                f"{', '.join(earlier)}; put the narrower pattern first"
            )
        for name in matched:
            deciding.setdefault(name, pattern)
    return deciding


def _unfit(name: str, parameter: nn.Parameter, normalization: bool) -> str:
    if normalization:
        return "normalization"
    if name.rpartition(".")[2] == "bias":
        return "bias"
    if isinstance(parameter, nn.UninitializedParameter):
        return "not initialized yet; run a forward pass first"
    if (dimensions := len(shape_of(parameter))) < 2:
        return f"{dimensions} dimension{'s' if dimensions != 1 else ''}"
    if parameter.dtype not in DTYPES:
        return f"dtype {parameter.dtype}"
    if not parameter.requires_grad:
        return "frozen (requires_grad is False)"
    if kind := special_kind(own_part(parameter)):
        return f"special tensor: {kind}"
    return ""
