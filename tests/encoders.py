"""A tiny encoder of transformers, and sentences made of the words in its vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

WORDS = [f"word{number}" for number in range(40)]


def tiny_encoder(folder: Path) -> Path:
    """The folder of a saved encoder of 12,000 weights, inside of another one."""
    import transformers

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    path = folder / "encoder"
    transformers.BertTokenizerFast(str(vocabulary)).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=45,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


def sentences(count: int) -> list[str]:
    """Random ones of eight words."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, 8)) for _ in range(count)]
