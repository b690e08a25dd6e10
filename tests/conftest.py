"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import sys
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from paths import ROOT

os.environ.setdefault("MPLBACKEND", "Agg")
# Waiting threads that spin make small networks many times slower on a busy machine. Read as torch
# is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import emulated_cuda
import torch
from devices import KINDS, Device

import pysoftq

# The same examples everywhere, and no limit of time: a slow machine is not a failure.
settings.register_profile("pysoftq", deadline=None, derandomize=True)
settings.load_profile("pysoftq")


def pytest_configure(config: pytest.Config) -> None:
    """With ``--durations``, the CPU seconds of the modules are shown too."""
    if config.option.durations is not None:
        from cpu_seconds import CpuSeconds  # not on every system

        config.pluginmanager.register(CpuSeconds())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the repository; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tenth test image of CIFAR-10, 1,000 in all, as ``test/<class>/NNN0.jpg``."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(shared_data / "cifar10-jpeg.tar.gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not (member.isfile() and name.startswith("test/") and name.endswith("0.jpg")):
                continue
            content = archive.extractfile(member)
            assert content is not None
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with long tests first: no process is left alone with one of them at the end.

    The tests of a module stay together: its fixtures are made once.
    """
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Garbage collections skip modules and tests, among which a full one takes half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of `device` run on the devices that their mark names, else on all."""
    if "device" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("devices")
    kinds = mark.args if mark else KINDS
    params = [pytest.param(kind, marks=KINDS[kind]) for kind in kinds]
    metafunc.parametrize("device", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Device:
    """A backend, and where its tensors live."""
    return Device.of(request.param)


@pytest.fixture
def emulated() -> Iterator[ModuleType]:
    """The emulated extension itself."""
    extension = emulated_cuda.backend()._cuda
    yield extension
    extension.fail(0)
    extension.set_seed(0)
    extension.set_devices(1)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies write empty files for their figures, which take most of the time of a command."""

    def save(_: object, stem: Path) -> list[Path]:
        files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
        for file in files:
            file.touch()
        return files

    monkeypatch.setattr("pysoftq.cli.studies._save", save)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes run in bfloat16 where they shall, also on a CPU that emulates it."""
    monkeypatch.setattr("pysoftq.run.precision.has_bfloat16", lambda device: True)


@pytest.fixture(scope="module")
def light_fonts() -> Iterator[None]:
    """PDF files hold outlines in place of fonts, whose subsets take half of the time of a figure.

    `pysoftq compress` is tested without it.
    """
    from pysoftq.analysis.figures import style

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style._SETTINGS, "pdf.fonttype", 3)
        yield


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work elsewhere: a Python started in the source tree finds it before what is installed."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """A module begins as if it were alone in its process: others run before it in any order.

    Neither what the package has cached comes from another one, nor the state of random numbers,
    variables of the environment, paths, threads, handlers and hooks.
    """
    for function in caches():
        function.cache_clear()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    threads = torch.get_num_threads(), pysoftq.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "path", sys.path.copy()),
        mock.patch.object(sys, "excepthook", sys.excepthook),
    ):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads[0])
    pysoftq.set_num_threads(threads[1])


def caches() -> list[Any]:
    """The functions of the package that remember what they have returned."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "pysoftq"]
    values = [value for module in modules for value in vars(module).values()]
    return [value for value in values if isinstance(value, functools._lru_cache_wrapper)]


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    """Tests marked ``gpu`` are skipped where there is no CUDA device."""
    if request.node.get_closest_marker("gpu") is None:
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
