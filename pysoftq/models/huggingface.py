"""Causal language models and tokenizers from a local folder in Hugging Face's format.

transformers is imported only when asked for, and nothing is ever downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.errors import ConfigError

PREFIX = "hf:"


def is_folder_model(name: str) -> bool:
    """Whether the name of a model is ``hf:DIR``, which brings its weights along."""
    return name.startswith(PREFIX)


def load_model(name: str, vocab_size: int, context: int) -> nn.Module:
    """The causal language model of the folder in ``hf:DIR``, with its weights, in float32.

    Raises ConfigError where transformers is missing, the folder is none of such a model, its
    vocabulary is smaller than ``vocab_size`` or it sees fewer tokens than ``context``.
    """
    folder, transformers = _folder(name), _transformers()
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True
        ).float()
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and longest < context:
        raise ConfigError(
            f"model {name!r} sees {longest} tokens at most, fewer than option 'context', {context}"
        )
    if model.config.vocab_size < vocab_size:
        raise ConfigError(
            f"model {name!r} has a vocabulary of {model.config.vocab_size}, its tokenizer one of "
            f"{vocab_size}"
        )
    return _ready(model)


def rebuild_model(config: dict[str, Any]) -> nn.Module:
    """The network of a model's configuration, without its weights; raises as ``load_model``."""
    transformers = _transformers()
    made = transformers.AutoConfig.for_model(**config)
    return _ready(transformers.AutoModelForCausalLM.from_config(made))


def _ready(model: Any) -> nn.Module:
    model.config.use_cache = False  # keys and values of a past that training never has
    spec = {"name": PREFIX, "config": json.loads(model.config.to_json_string(use_diff=False))}
    model.pysoftq_spec = spec
    network: nn.Module = model
    return network


class FolderTokenizer:
    """The tokenizer of the folder in ``hf:DIR``; raises as `load_model`."""

    def __init__(self, name: str) -> None:
        folder, transformers = _folder(name), _transformers()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"model {name!r} has no tokenizer that can be loaded: {_first_line(error)}"
            ) from error
        if not self.encode("text").numel():  # transformers makes an empty one of missing files
            raise ConfigError(f"model {name!r} has no tokenizer that can be loaded: it is empty")
        self.name = name
        self.vocabulary = len(self._tokenizer)

    def encode(self, text: str) -> Tensor:
        """Tokens (N,) int64, without special ones."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def _folder(name: str) -> Path:
    folder = Path(name.removeprefix(PREFIX))
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model {name!r}: wanted hf: and a folder with config.json, weights and tokenizer, "
            f"as save_pretrained writes them"
        )
    return folder


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "models from a Hugging Face folder want transformers: "
            "run pip install 'pysoftq[transformers]'"
        ) from None
    return transformers


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
