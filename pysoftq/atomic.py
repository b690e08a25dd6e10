"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pysoftq.paths import user_path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it replaces `path` in one step.

    The temporary file keeps the suffix of `path` (some writers append one otherwise) and the
    permissions that an ordinary new file would get. A symbolic link is followed, not replaced.
    On an error inside the block the temporary file is removed and `path` is untouched; after a
    forced kill `path` is untouched and a hidden file `.NAME.*` may stay behind.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        OSError: the file cannot be written, naming `path` (a full disk, for one).
    """
    target = Path(os.path.realpath(user_path(path)))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            raise _naming(path, error) from error
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _sync(target.parent, os.O_RDONLY)


@contextmanager
def errors_naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the system name `path`, which is written here or in another process."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == os.fspath(path):
            raise
        raise _naming(path, error) from error


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new empty folder next to `path`; on success it takes the place of `path`.

    A folder that is there is moved aside, replaced and then removed: for a moment there is none
    of that name. On an error inside the block the new folder is removed and `path` is untouched;
    after a forced kill a hidden folder `.NAME.*` may stay behind.

    Raises:
        FileNotFoundError: the folder that `path` is to be in does not exist.
        NotADirectoryError: `path` is a file.
        OSError: the folder cannot be written.
    """
    target = Path(os.path.realpath(user_path(path)))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected the name of a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}")
    temporary, aside = (
        target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}") for _ in range(2)
    )
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file, os.O_RDWR)
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists():
            aside.rename(target)
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            raise _naming(path, error) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)
    if os.name == "posix":
        _sync(target.parent, os.O_RDONLY)


def _naming(path: str | os.PathLike[str], error: OSError) -> OSError:
    """The same error, of the file that was to be written."""
    if error.errno is None:
        return OSError(f"cannot write {path}: {error}")
    return OSError(error.errno, error.strerror, os.fspath(path))


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
