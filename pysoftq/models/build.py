"""Networks that the driver can build by name.

- ``resnet20`` … ``resnet110``: the CIFAR ResNets of He et al. with option-A shortcuts, which hold
  no parameters (channels are padded with zeros), so that every weight belongs to a convolution or
  to the last layer. State-dict keys: ``conv1``, ``bn1``, ``layer1.0.conv1`` …, ``linear``.
- ``digits-resnet``: the same family with 8/16/32 channels, for 8×8 images with one channel.
- any classification model of torchvision, which is imported only when asked for.
- ``gpt``: a small language model (`pysoftq.models.gpt`); ``hf:DIR``: one of a Hugging Face folder.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pysoftq.errors import ConfigError
from pysoftq.models import huggingface
from pysoftq.models.gpt import GPT, GPTS
from pysoftq.models.resnet import RESNETS, ResNet


def build_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    vocab_size: int | None = None,
    context: int | None = None,
    config: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network; ``model.pysoftq_spec`` holds what is needed to build it again.

    A classifier of images is built from ``num_classes`` and ``in_channels``, a language model from
    ``vocab_size`` and ``context``, both with fresh weights; ``hf:DIR`` brings its own, but for
    ``hf:`` with the ``config`` of such a model.

    Raises ConfigError for an unknown name, as torchvision's are where torchvision is missing, and
    for a network of the other kind; ValueError for torchvision's models where ``in_channels`` is
    not 3.
    """
    if name == huggingface.PREFIX and config is not None:
        return huggingface.rebuild_model(config)
    if name in GPTS or huggingface.is_folder_model(name):
        if vocab_size is None or context is None:
            raise ConfigError(f"model {name!r} is a language model: it reads text, no images")
        return _language_model(name, vocab_size, context)
    if num_classes is None:
        known = ", ".join(GPTS)
        raise ConfigError(f"model {name!r} does not read text: expected one of {known}, or hf:DIR")
    return _classifier(name, num_classes, in_channels)


def _language_model(name: str, vocab_size: int, context: int) -> nn.Module:
    if huggingface.is_folder_model(name):
        return huggingface.load_model(name, vocab_size, context)
    model = GPT(*GPTS[name], vocab_size, context)
    spec = {"name": name, "vocab_size": vocab_size, "context": context}
    model.pysoftq_spec = spec  # type: ignore[assignment]
    return model


def _classifier(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if name in RESNETS:
        blocks, channels = RESNETS[name]
        model: nn.Module = ResNet(blocks, channels, num_classes, in_channels)
    else:
        model = _torchvision_model(name, num_classes, in_channels)
    # Plain JSON, kept in the compressed file so that the network can be rebuilt from it.
    spec = {"name": name, "num_classes": num_classes, "in_channels": in_channels}
    model.pysoftq_spec = spec  # type: ignore[assignment]
    return model


def _torchvision_model(name: str, num_classes: int, in_channels: int) -> nn.Module:
    known = ", ".join(RESNETS)
    try:
        from torchvision import models
    except ImportError:
        raise ConfigError(
            f"unknown model {name!r}: without torchvision the models are {known}; "
            "for torchvision's own, run: pip install torchvision"
        ) from None
    if name not in models.list_models(module=models):
        raise ConfigError(
            f"unknown model {name!r}: give one of {known}, or a classification model of torchvision"
        )
    if in_channels != 3:
        raise ValueError(f"model {name!r} takes images with 3 channels, these have {in_channels}")
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return model
