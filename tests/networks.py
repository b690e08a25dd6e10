"""Small networks with clustered weights, for tests of what they are exported to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.baselines import histogram_equalize
from pysoftq.models.build import build_model


def clustered(model: nn.Module, bits: int = 3) -> nn.Module:
    """The model with 2**bits values in each weight, as far as there are as many weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(histogram_equalize(parameter, bits).weights(parameter.shape))
    return model.eval()


def resnet(name: str = "digits-resnet-small", in_channels: int = 1) -> nn.Module:
    """A clustered ResNet whose normalisation is not the identity."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, in_channels=in_channels)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.normal_(std=0.1)
    return clustered(model)


class LanguageModel(nn.Module):
    """Tokens (B, T) to logits (B, T, 50); the embedding and the last layer are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.unused = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.embedding(tokens)))
        return logits


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return clustered(LanguageModel())


def mixed_mlp() -> nn.Sequential:
    """A layer for each case: K = 1, 2, 5, 300, a codebook for each channel, and not clustered.

    The third and the fourth are the same.
    """
    generator = torch.Generator().manual_seed(0)

    def values(count: int, shape: tuple[int, int]) -> Tensor:
        codebook = torch.randn(count, generator=generator) / shape[1] ** 0.5
        drawn = codebook[torch.randint(count, (shape[0] * shape[1],), generator=generator)]
        drawn[:count] = codebook  # each value occurs
        return drawn.reshape(shape)

    weights = [
        torch.full((24, 16), 0.125),
        values(2, (48, 24)),
        values(5, (48, 48)),
        values(5, (48, 48)),
        values(300, (48, 48)),
        torch.cat([values(3, (1, 48)) for _ in range(64)]),
        torch.randn(10, 64, generator=generator) / 8,
    ]
    model = nn.Sequential()
    for weight in weights:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data = weight
        model.extend([linear, nn.Tanh()])
    shared = model[4]
    assert isinstance(shared, nn.Linear)
    model[6] = shared
    return model.eval()


class SpecialTensor(Tensor):
    """A tensor with storage of its own, as the quantized ones of torchao."""

    def __new__(cls, *shape: int) -> SpecialTensor:  # noqa: PYI034
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(*args[0].shape)
        raise NotImplementedError(f"{func} of a special tensor")
