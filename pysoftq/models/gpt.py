"""A small GPT: a decoder-only transformer with learned positions and pre-normalisation.

The output head is the matrix of the token embeddings: one tensor, used twice, coupled once.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# name -> (blocks, heads, width)
GPTS: dict[str, tuple[int, int, int]] = {
    "gpt": (2, 4, 64),
    "gpt-tiny": (1, 2, 16),
}


class GPTBlock(nn.Module):
    """Causal self-attention and a two-layer perceptron, each added to what comes in."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same shape."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attended(seen.transpose(1, 2).reshape(batch, length, width))
        added: Tensor = self.contract(F.gelu(self.expand(self.norm2(x))))
        return x + added


class GPT(nn.Module):
    """Input tokens (B, T) int64 with T ≤ context, output logits (B, T, vocab_size)."""

    def __init__(self, blocks: int, heads: int, width: int, vocab_size: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.checkpointing = False
        self.blocks = nn.Sequential(*(GPTBlock(heads, width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # What is added to the residual stream is scaled down by the number of additions.
                added = name.endswith(("attended.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * blocks if added else 1) ** 0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at each place."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Compute the activations of a block again in the backward pass; as in transformers."""
        self.checkpointing = True
