"""ResNets for small images, after He et al."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
