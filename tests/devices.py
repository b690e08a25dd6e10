"""Backends and where their tensors live: what the fixture `device` yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import emulated_cuda
import numpy as np
import pytest
import torch

from pysoftq.interaction import backends
from pysoftq.interaction.backends import core, plain

# Name of a device in the tests, and the mark of the tests that run on it.
KINDS = {
    "core": (),
    "plain": (),
    "cuda emulated": (),
    "plain on cuda": pytest.mark.gpu,
    "cuda": pytest.mark.gpu,
}


@dataclass(frozen=True)
class Device:
    """A backend, and the device of torch that its tensors are on."""

    kind: str
    backend: Any  # a module that fulfils `backends.Backend`

    @property
    def name(self) -> str:
        """Where tensors are; those of the CPU may stand for another device's."""
        return "cuda" if self.kind in ("cuda", "plain on cuda") else "cpu"

    def put(self, values: np.ndarray | torch.Tensor) -> torch.Tensor:
        """A copy there."""
        return torch.as_tensor(values).to(self.name, copy=True)

    @classmethod
    def of(cls, kind: str) -> Device:
        if kind == "cuda":
            if not backends.has_cuda():
                pytest.skip("built without CUDA")
            return cls(kind, backends.on_device(torch.device("cuda")))
        if kind == "cuda emulated":
            return cls(kind, emulated_cuda.backend())
        return cls(kind, core if kind == "core" else plain)
