"""Paths as users write them, on the command line, in YAML files and in names of data sets."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by that home folder.

    A shell expands it only at the beginning of a word: not in ``imagefolder:~/photos``, in
    ``--weights=~/w.pt`` or in a YAML file. An unknown user name stays as it is, as in a shell.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user, or no home
        return Path(path)
