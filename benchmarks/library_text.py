"""A text and a language model for it: ``python -m benchmarks.library_text FOLDER``.

The text, FOLDER/text.txt, is the source of modules and some packages of Python's standard library,
6 million bytes in Python 3.11. The model, FOLDER/model, is a GPT-2 of about a
million weights with a byte-level BPE, trained by torch and transformers on the first 80 % of the
text: what `pysoftq compress` learns from, without what it validates and tests on.
"""

from __future__ import annotations

import argparse
import math
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pysoftq.run.precision import has_bfloat16

PACKAGES = ("asyncio", "collections", "email", "http", "json", "logging")
TRAINED = 0.8
TOKENS = 2048
CONTEXT = 128
BATCH = 16


def library_text(library: Path) -> str:
    """The modules of the standard library and of some packages, one file after the other."""
    files = [*library.glob("*.py")]
    for package in PACKAGES:
        files += (library / package).rglob("*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))


def make_model(text: str, folder: Path) -> tuple[Any, Tensor]:
    """A GPT-2 with random weights, its tokenizer saved in the folder; and the tokens of a text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(text.split("\n\n"), vocab_size=TOKENS, show_progress=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"n_positions": CONTEXT, "n_embd": 128, "n_layer": 4, "n_head": 4}
    config = GPT2Config(vocab_size=len(fast), bos_token_id=0, eos_token_id=0, **shape)
    return GPT2LMHeadModel(config), torch.tensor(tokenizer.encode(text).ids)


def train(model: Any, tokens: Tensor, epochs: float) -> None:
    """AdamW with one cycle of the learning rate, in bfloat16 where the processor has it."""
    steps = math.ceil(epochs * len(tokens) / (BATCH * CONTEXT))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    span, start = torch.arange(CONTEXT), time.perf_counter()
    for step in range(steps):
        begins = torch.randint(len(tokens) - CONTEXT, (BATCH,))
        windows = tokens[begins[:, None] + span]
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            loss = model(windows, labels=windows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.perf_counter() - start
            print(f"{step}/{steps}: loss {loss:.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Write the text and the model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.library_text", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=3.0)
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    text = library_text(Path(sysconfig.get_paths()["stdlib"]))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    model, tokens = make_model(text[: int(TRAINED * len(text))], folder / "model")
    print(
        f"{len(text.encode()):,} bytes, {len(tokens):,} tokens to learn, "
        f"{sum(p.numel() for p in model.parameters()):,} weights",
        file=sys.stderr,
    )
    train(model, tokens, chosen.epochs)
    model.save_pretrained(folder / "model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
