"""Roles of parameters: what is not a weight of a layer is not coupled, whatever its shape."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNCellBase

from pysoftq.interaction.pieces import shape_of

# Modules whose `weight` is one, whatever its shape and name.
LAYERS = (
    *(nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag),
    *(nn.RNNBase, RNNCellBase, nn.MultiheadAttention),
)
NORMALIZATION = (_NormBase, nn.LayerNorm, nn.GroupNorm)
# Other libraries' normalisation, by the names of their classes: LlamaRMSNorm, LayerNorm2d,
# BatchNormAct2d, ConvNextV2GRN.
_NORMALIZATION_NAME = re.compile(r"(Norm(Act)?(\d[dD])?|GRN)$")
_POSITIONS = {"pos", "position", "positions", "positional", "wpe"}
_TOKENS = {"token", "tokens"}


def roles(model: nn.Module) -> dict[int, str]:
    """Why parameters of a model are not weights of a layer, by the parameters' ids.

    Normalisation is recognised by the type of its module; scales and single tokens by their one
    dimension longer than 1, outside of layers; position embeddings and tokens by their names.
    """
    return {
        id(parameter): role
        for owner, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if (role := _role(module, owner, name, parameter))
    }


def _role(module: nn.Module, owner: str, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORMALIZATION) or _NORMALIZATION_NAME.search(type(module).__name__):
        return "normalization"
    if isinstance(parameter, nn.UninitializedParameter):
        return ""
    # "weight" says nothing: then the module's own name does.
    words = set((owner.rpartition(".")[2] if name == "weight" else name).split("_"))
    embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if isinstance(module, LAYERS) and not embedding:
        return ""
    if words & _POSITIONS or "_".join(sorted(words)) == "attention_bias_relative":
        return "position embedding"
    if embedding:
        return ""
    if words & _TOKENS:
        return "token"
    shape = shape_of(parameter)
    if len(shape) > 1 and sum(length > 1 for length in shape) < 2:
        return "scale or vector: at most one dimension is longer than 1"
    return ""


def padding_rows(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """The weight of each embedding with a padding row, and the index of that row."""
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            yield module.weight, module.padding_idx
