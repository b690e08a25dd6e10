"""Networks that the driver can build by name.

- ``resnet20`` … ``resnet110``: the CIFAR ResNets of He et al. with option-A shortcuts, which hold
  no parameters (channels are padded with zeros), so that every weight belongs to a convolution or
  to the last layer. State-dict keys: ``conv1``, ``bn1``, ``layer1.0.conv1`` …, ``linear``.
- ``digits-resnet``: the same family with 8/16/32 channels, for 8×8 images with one channel.
- any classification model of torchvision, which is imported only when asked for.
- ``gpt``: a small language model (`pysoftq.gpt`); ``hf:DIR``: one of a Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysoftq import huggingface
from pysoftq.config import ConfigError
from pysoftq.gpt import GPT, GPTS

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
CIFAR_CHANNELS = (16, 32, 64)

# name -> (blocks in each of the three stages, channels of the three stages)
RESNETS: dict[str, tuple[int, tuple[int, int, int]]] = {
    **{f"resnet{depth}": ((depth - 2) // 6, CIFAR_CHANNELS) for depth in CIFAR_DEPTHS},
    "digits-resnet": (1, (8, 16, 32)),
    "digits-resnet-small": (1, (4, 8, 16)),
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and an option-A shortcut (strided identity, zero-padded channels)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.extra_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H/stride, W/stride)."""
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu_(out.add_(self.shortcut(x)))

    def shortcut(self, x: Tensor) -> Tensor:
        """The input in the output's shape, without any parameter."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            before = self.extra_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.extra_channels - before))
        return x


class ResNet(nn.Module):
    """ResNet for small images: a 3×3 stem, three stages, mean pooling, a linear layer.

    Input (B, in_channels, H, W), output (B, num_classes).
    """

    def __init__(
        self, blocks: int, channels: Sequence[int], num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(blocks, first, first, stride=1)
        self.layer2 = _stage(blocks, first, second, stride=2)
        self.layer3 = _stage(blocks, second, third, stride=2)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    others = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


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
        raise ConfigError(f"model {name!r} does not read text: wanted one of {known}, or hf:DIR")
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
    # Plain JSON, kept in the compressed file so that the network can be rebuilt from it alone.
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
