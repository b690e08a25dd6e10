"""Activations that are computed again in the backward pass, for less memory."""

from __future__ import annotations

from torch import nn

from pysoftq.errors import ConfigError

# Names of transformers, new and old, with that of the argument.
_METHODS = (
    ("activation_checkpointing_enable", "activation_checkpointing_kwargs"),
    ("gradient_checkpointing_enable", "gradient_checkpointing_kwargs"),
)


def recompute_activations(model: nn.Module, name: str) -> None:
    """Keep only the inputs of a language model's blocks for the backward pass.

    Raises ConfigError for a model that cannot do so; ``name`` is that of the option.
    """
    found = next((method for method in _METHODS if hasattr(model, method[0])), None)
    # transformers has the method for all models, and an attribute that says for which it works.
    if found is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise ConfigError(
            f"option 'gradient_checkpointing': model {name!r} cannot compute activations again; "
            "raise `accumulate` for less memory"
        )
    method, argument = found
    getattr(model, method)(**{argument: {"use_reentrant": False}})
