"""The CUDA backend with its kernels on the CPU, where PYSOFTQ_CUDA_EMULATION was built."""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType
from unittest import mock

import pytest

import pysoftq


@functools.cache
def backend() -> ModuleType:
    """The CUDA backend on top of the emulated extension, for tensors on the CPU."""
    core = pytest.importorskip("pysoftq._cuda_emulated", exc_type=ModuleNotFoundError)
    spec = importlib.util.find_spec("pysoftq.interaction.backends.cuda")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with (
        mock.patch.dict(sys.modules, {"pysoftq._cuda": core}),
        mock.patch.object(pysoftq, "_cuda", core, create=True),
    ):
        spec.loader.exec_module(module)
    # Between guards and full of rubbish: what is read before it is written changes results.
    module._block = lambda size, device: core.Allocation(size)
    return module
