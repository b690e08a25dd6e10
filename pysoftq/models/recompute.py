"""Activations that are computed again in the backward pass, for less memory."""

from __future__ import annotations

from torch import nn

from pysoftq.errors import ConfigError


def recompute_activations(model: nn.Module, name: str) -> None:
    """Keep only the inputs of a language model's blocks for the backward pass.

    Raises ConfigError for a model that cannot do so; ``name`` is that of the option.
    """
    enable = getattr(model, "gradient_checkpointing_enable", None)
    # transformers has the method for all models, and an attribute that says for which it works.
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise ConfigError(
            f"option 'gradient_checkpointing': model {name!r} cannot compute activations again; "
            "raise `accumulate` for less memory"
        )
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})
