"""The lines of Python that load the network of a run and apply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pysoftq.artifact import ArtifactInfo
from pysoftq.models.huggingface import PREFIX


def loading_lines(path: Path, info: ArtifactInfo) -> str:
    """Python that loads the compressed file of a run and applies the network to inputs.

    Args:
        path: of the compressed file, as the lines name it.
        info: its content, with the network's specification and the metadata of a run.
    """
    inputs = info.metadata["input"]
    if inputs["dtype"] == "int64":
        returns_more = str((info.model or {}).get("name")).startswith(PREFIX)
        lines = _text_lines(inputs["shape"], ".logits" if returns_more else "")
    else:
        lines = _image_lines(inputs["shape"], info.metadata)
    load = f"model = load_compressed({str(path)!r}).eval()"
    return "\n".join(["import torch", "from pysoftq import load_compressed", "", load, *lines])


def _text_lines(shape: Sequence[int], logits: str) -> list[str]:
    size = ", ".join(map(str, (1, *shape)))
    return [
        f"tokens = torch.zeros({size}, dtype=torch.int64)  # your tokens here",
        "with torch.inference_mode():",
        f"    following = model(tokens){logits}.argmax(-1)  # the next token after each place",
    ]


def _image_lines(shape: Sequence[int], metadata: Mapping[str, Any]) -> list[str]:
    size = ", ".join(map(str, (4, *shape)))
    return [
        f"images = torch.rand({size})  # your images here, values in [0, 1]",
        f"mean = torch.tensor({metadata['mean']}).view(-1, 1, 1)",
        f"std = torch.tensor({metadata['std']}).view(-1, 1, 1)",
        "with torch.inference_mode():",
        "    classes = model((images - mean) / std).argmax(1)",
    ]
