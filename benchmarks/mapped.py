"""A model larger than caches, mapped from a safetensors file: clusters written, then saved.

``python -m benchmarks.mapped FILE --weights 1e9 --memory 24`` writes the file first unless it is
there (4 bytes a weight), and fails where more than so many GiB of addresses are asked for.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.states import gaussian
from pysoftq import SoftQuantizer, save_compressed

COLUMNS = 4096


def main() -> None:
    """Write the file, map it, finalize and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--weights", type=float, default=1e8)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--memory", type=int, default=24, help="GiB")
    options = parser.parse_args()
    rows = int(options.weights) // options.layers // COLUMNS
    if not options.file.exists():
        write(options.file, options.layers, rows)
    limit = options.memory << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    model = Mapped(options.file)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} weights in {len(list(model.parameters()))} layers")
    softq = report("construction", size, lambda: SoftQuantizer(model))
    report("finalize", size, softq.finalize)
    with tempfile.TemporaryDirectory(dir=options.file.parent) as folder:
        path = Path(folder) / "compressed"
        for coding in ("packed", "entropy"):
            report(f"save, {coding}", size, partial(save_compressed, model, path, coding=coding))
            print(f"  {8 * path.stat().st_size / size:.2f} bits per weight")


def write(path: Path, layers: int, rows: int) -> None:
    """A file of Gaussian weights, a layer at a time."""
    length = 4 * rows * COLUMNS
    header = {
        f"layers.{i}.weight": {
            "dtype": "F32",
            "shape": [rows, COLUMNS],
            "data_offsets": [i * length, (i + 1) * length],
        }
        for i in range(layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i in range(layers):
            file.write(gaussian(rows, COLUMNS, seed=i).numpy().data)


class Mapped(nn.Module):
    """The tensors of a safetensors file as weights, private pages of its mapping.

    What is read takes no memory that the system could not take back; what is written is a copy.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        mapped = np.memmap(path, dtype=np.uint8, mode="c")
        begin = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        self.layers = nn.ModuleList()
        for entry in json.loads(mapped[8:begin].tobytes()).values():
            first, last = (begin + offset for offset in entry["data_offsets"])
            values = mapped[first:last].view(np.float32).reshape(entry["shape"])
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = nn.Parameter(torch.from_numpy(np.asarray(values)))
            self.layers.append(layer)


def report(name: str, size: int, work: Callable[[], Any]) -> Any:
    """Do some work; print its time for each weight and the most memory in use so far."""
    begin = time.perf_counter()
    result = work()
    nanoseconds = (time.perf_counter() - begin) * 1e9 / size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {nanoseconds:.2f} ns per weight, {peak:.1f} GiB at most so far", flush=True)
    return result


if __name__ == "__main__":
    main()
