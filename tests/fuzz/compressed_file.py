"""The reader of compressed files under atheris: ``python tests/fuzz/compressed_file.py [OPTIONS]``.

Options are those of libFuzzer (``-max_total_time=300``, ``-help=1``). An input says how one of a
few good files is changed, with a right checksum; or it replaces the end of one.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
import forged_files

from pysoftq import entropy_coding, packing, segments
from pysoftq.artifact import read

# One by one, for an editable installation has an importer of its own.
for part in (read, read.File, packing, segments, entropy_coding):
    for function in vars(part).values():
        if inspect.isfunction(function):
            atheris.instrument_func(function)

FILES = forged_files.good_files()
FOLDER = tempfile.TemporaryDirectory()
PATH = Path(FOLDER.name) / "forged.safetensors"


def run(data: bytes) -> None:
    """One input."""
    source = atheris.FuzzedDataProvider(data)
    good = FILES[source.ConsumeIntInRange(0, len(FILES) - 1)]
    if source.ConsumeIntInRange(0, 9):
        forged = forged_files.forge(good, lambda n: source.ConsumeIntInRange(0, n - 1))
    else:
        place = source.ConsumeIntInRange(0, len(good))
        forged = good[:place] + source.ConsumeBytes(2**12)
    PATH.write_bytes(forged)
    forged_files.read_or_refuse(PATH)


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
