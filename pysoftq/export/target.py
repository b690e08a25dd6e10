"""Where an export is written, and what it needs to be written."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal

from pysoftq.models.weight_files import SUFFIXES as STATE_DICT_SUFFIXES
from pysoftq.paths import user_path

Format = Literal["onnx", "coreml", "state_dict"]

SUFFIXES: dict[Format, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "coreml": (".mlpackage",),
    "state_dict": STATE_DICT_SUFFIXES,
}


def check_target(path: str | os.PathLike[str], kind: Format, overwrite: bool) -> Path:
    """The path to write to.

    Raises:
        ValueError: its suffix is not one of the format's.
        FileExistsError: it is there already, and not to be replaced; or it is a folder, but no
            Core ML package, and never replaced.
        FileNotFoundError: its folder is missing.
    """
    target = user_path(path)
    if target.suffix not in SUFFIXES[kind]:
        expected = " or ".join(SUFFIXES[kind])
        raise ValueError(f"{path} has the suffix {target.suffix!r}; expected {expected}")
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(
            f"{path} exists already; to replace it, give overwrite=True, "
            "or --force on the command line"
        )
    if target.is_dir() and not (target / "Manifest.json").is_file():
        raise FileExistsError(f"{path} is a folder, but no Core ML package: it is not replaced")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}")
    return target


def check_packages(extra: str, *packages: str) -> None:
    """Raise ImportError, saying how to install them, where packages are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"this export needs {' and '.join(missing)}: run pip install 'pysoftq[{extra}]'"
        )
