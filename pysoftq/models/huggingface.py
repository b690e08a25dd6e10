"""Causal language models and tokenizers from a local folder in Hugging Face's format.

transformers is imported only when asked for, and nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.errors import ConfigError, abridged, first_line
from pysoftq.models.weight_files import not_finite
from pysoftq.paths import user_path

PREFIX = "hf:"
_TOKENIZER_SUFFIXES = (".json", ".txt", ".model")  # weights have others


def is_folder_model(name: str) -> bool:
    """Whether the name of a model is ``hf:DIR``, which brings its weights along."""
    return name.startswith(PREFIX)


def load_model(name: str, vocab_size: int, context: int) -> nn.Module:
    """The causal language model of the folder in ``hf:DIR``, with its weights, in float32.

    Warns of tensors in the folder that the model does not use.

    Raises:
        ConfigError: transformers is missing, or the folder holds no causal language model, lacks
            tensors of it, holds one of another shape or one that is not finite; or its vocabulary
            is smaller than `vocab_size`, or it sees fewer tokens than `context`.
    """
    folder, transformers = _folder(name), _transformers()
    with _quiet(transformers):
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
        except Exception as error:  # of transformers, safetensors, or the operating system
            raise ConfigError(f"model {name!r} cannot be loaded: {first_line(error)}") from error
    model = model.float().eval()
    _refuse_misfits(name, model, info)
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
    if _sees_the_future(model):
        raise ConfigError(
            f"model {name!r} is no causal language model: its predictions depend on later tokens, "
            "as those of an encoder do"
        )
    return _ready(model)


def _refuse_misfits(name: str, model: nn.Module, info: dict[str, Any]) -> None:
    """Compare what the folder holds with what the model is made of."""
    shapes = [
        f"{key} is {_extent(found)}, expected {_extent(expected)}"
        for key, found, expected in sorted(info["mismatched_keys"])
    ]
    # Tied tensors that are stored once are not missing: transformers leaves them out.
    problems = {
        "missing": sorted(info["missing_keys"]),
        "wrong shape": shapes,
        "NaN or infinite values": not_finite(model.state_dict()),
    }
    listed = [f"{problem}: {abridged(keys)}" for problem, keys in problems.items() if keys]
    if listed:
        raise ConfigError(
            f"model {name!r}: the folder does not hold the causal language model of its "
            f"config.json ({type(model).__name__}); {'; '.join(listed)}"
        )
    if unused := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"model {name!r}: {len(unused)} tensors of the folder are not used by "
            f"{type(model).__name__}: {abridged(unused)}",
            stacklevel=3,
        )


@torch.no_grad()
def _sees_the_future(model: Any) -> bool:
    """Whether another last token changes the predictions before it."""
    tokens = torch.arange(4)[None] % model.config.vocab_size
    changed = tokens.clone()
    changed[0, -1] = 0
    before, after = (model(ids).logits[0, :-1] for ids in (tokens, changed))
    # Rounding differs in the last digits only: 1e-4 is far above it, and far below an encoder.
    return bool((before - after).abs().max() > 1e-4 * before.abs().max())


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
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ConfigError(
                f"model {name!r} has no tokenizer that can be loaded: {first_line(error)}"
            ) from error
        if not self.encode("text").numel():  # transformers makes an empty one of missing files
            raise ConfigError(f"model {name!r} has no tokenizer that can be loaded: it is empty")
        self.name = name
        self.vocabulary = len(self._tokenizer)
        self._files = folder

    @property
    def digest(self) -> str:
        """A hash of the tokenizer's files and the versions of the libraries."""
        found = hashlib.sha256(version("transformers").encode() + version("tokenizers").encode())
        for file in sorted(self._files.iterdir()):
            if file.is_file() and file.suffix in _TOKENIZER_SUFFIXES:
                found.update(file.name.encode() + file.read_bytes())
        return found.hexdigest()

    def encode(self, text: str) -> Tensor:
        """Tokens (N,) int64, without special ones."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def _folder(name: str) -> Path:
    folder = user_path(name.removeprefix(PREFIX))
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model {name!r}: expected hf: and a folder with config.json, weights and tokenizer, "
            f"as save_pretrained writes them"
        )
    return folder


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "models from a Hugging Face folder require transformers: "
            "run pip install 'pysoftq[transformers]'"
        ) from None
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars and tables of transformers: what they tell is in our messages."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _extent(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
