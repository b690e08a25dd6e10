"""Values measured one by one, kept in a file, so that an interrupted study resumes where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file of lines {"key": …, "value": …}, the values being plain JSON.

    Each study of other ``settings`` has its own file, named by their digest; its first line
    holds them. A line is appended in one write and forced to the disk; a line that a kill cut short
    is dropped when the file is opened again. Two processes on one file do no harm where values are
    functions of their keys, as they ought to be.

    Attributes:
        path: of the file, in ``folder``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        header = json.dumps({"settings": settings}, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(header.encode()).hexdigest()[:12]
        self.path = folder / f"values-{digest}.jsonl"
        self._values: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        if not whole:
            self._append(header)
        for line in whole.decode().splitlines()[1:]:
            row = json.loads(line)
            self._values[row["key"]] = row["value"]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value kept under ``key``, measured now and kept if there is none.

        Raises ValueError naming the key where it is measured and not finite.
        """
        if key not in self._values:
            value = measure()
            try:
                line = json.dumps({"key": key, "value": value}, allow_nan=False)
            except ValueError:
                raise ValueError(f"{key}: measured {value}, expected finite numbers") from None
            self._append(line)
            self._values[key] = value
        return self._values[key]

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, (line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
