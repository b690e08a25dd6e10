"""Implementations of the interaction; the device that holds the weights selects one (`of`).

`core` is the C++ core (CPU), `cuda` the CUDA kernels if they were built, `plain` torch operations
for every other device. All implement `Backend` and return identical counts and integer forces.
Results stay on the device. No coupling step on a GPU waits for it: refused weights are recorded
there until `SoftQuantizer.check()` reads the record. The front-ends validate all arguments except
the values of the weights.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pysoftq.interaction.backends import core

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pysoftq.interaction.layers import CoupledLayer
    from pysoftq.interaction.pieces import Extremes


class DeviceCoupling(Protocol):
    """All coupled layers of a model that live on one device."""

    def add_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        scale: float,
        fraction: float,
        seed: int,
        step: int,
    ) -> None:
        """Gradient += scale · h_l · dV/dtheta for each layer that has a gradient; log: over |V|.

        Weights and gradient of a layer are on the device, of one dtype and side by side: dense, in
        the same order of memory, which need not be the order of their indices. If weights of any
        layer are refused (see `check`), no gradient changes. The CPU's raises that itself.
        """

    def energies(self, thetas: Sequence[Tensor]) -> list[float]:
        """Strength times mean-field energy of each layer, without self terms (Eq. 6); log: nats.

        The weights of a layer are as for `add_force`. Waits for the device. ValueError names
        layers and reasons.
        """

    def set(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """What a step replayed from a CUDA graph uses; the device counts on by itself from here.

        Nothing to do where steps cannot be captured.
        """

    def recorded(self) -> bool:
        """Whether a step now would be recorded into a CUDA graph, not done.

        The graph uses the memory of this object, which must live as long.
        """

    def check(self) -> None:
        """Raise ValueError if any step since the last check was refused; waits for the device."""


class PieceCoupling(DeviceCoupling, Protocol):
    """The same of layers that several processes hold in pieces.

    `add_force` and `energies` are for segments that one process holds in whole. The step of the
    others, the shared ones, takes three phases; what each of them returns is exchanged before the
    next one (`pysoftq.interaction.pieces`).
    """

    def extremes(self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Extremes:
        """Extremes of the weights in this process, on the device; their maxima are exchanged."""

    def refuses(self, extremes: Extremes) -> bool:
        """Whether weights are unfit in any process; False on devices that are not waited for."""

    def unfit(
        self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[tuple[int, int, str]]:
        """What is unfit in this process, for `explain`."""

    def explain(self, extremes: Extremes, unfit: Iterable[tuple[int, int, str]]) -> str:
        """Name the layers that are refused, and the reasons, given what is unfit in all."""

    def counts(
        self, thetas: Sequence[Tensor], extremes: Extremes, fraction: float, seed: int, step: int
    ) -> Tensor:
        """Counts of the shared segments, int32, on the device; their sums are exchanged."""

    def add_shared_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        extremes: Extremes,
        counts: Tensor,
        scale: float,
        fraction: float,
    ) -> None:
        """As `add_force`, which adds the force of the other segments, for the shared ones."""

    def row_energies(
        self, thetas: Sequence[Tensor], extremes: Extremes, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Strength times energy of the segments, float64 on the CPU, 0 of others.

        Of those that this process reports, whose sums are exchanged, and of the shared ones.
        """

    def row_sums(self, energies: Tensor) -> list[float]:
        """The energy of each layer from those of the segments of all layers."""


class Backend(Protocol):
    """What each of the modules does.

    Weights, counts and results are flat and contiguous: NumPy arrays of float32 or float64 for
    `core`, tensors on the device of any floating dtype for the others. ValueError says what is
    wrong with the weights.
    """

    @property
    def Coupling(
        self,
    ) -> Callable[[Sequence[CoupledLayer], Sequence[int], int, bool, bool], PieceCoupling]:
        """Made of layers, their positions in the model (keys of random numbers), bins, fft, log."""

    def pair_energy(self, theta: Any, width: float, direct: bool) -> float:
        """Energy of all pairs (Eq. 2)."""

    def pair_force(self, theta: Any, width: float, direct: bool) -> Any:
        """Exact force, int64 (N,)."""

    def pair_occupancy(self, theta: Any, width: float, direct: bool) -> Any:
        """|V| / width at each weight, self term included, float64 (N,)."""

    def density(
        self, theta: Any, bins: int, fraction: float, seed: int
    ) -> tuple[Any, float, float, float]:
        """Counts, int64 (bins,), low, high and spacing (Eq. 4)."""

    def potential(self, counts: Any, spacing: float, width: float, fft: bool) -> Any:
        """V at the midpoints, float64 (bins,) (Eq. 5)."""

    def mean_field_energy(self, counts: Any, spacing: float, width: float, log: bool) -> float:
        """Energy of the binned weights without their self terms (Eq. 6); with `log`, nats."""

    def force_table(self, counts: Any, spacing: float, width: float, fft: bool) -> Any:
        """dV/dtheta at the midpoints, float64 (bins,)."""

    def force(self, theta: Any, width: float, bins: int, fft: bool, log: bool) -> Any:
        """dV/dtheta of each weight, (N,): float64 for float64 weights, else float32 (Eq. 7).

        With `log`, over |V|.
        """


def of(array: Any) -> Backend:
    """The backend for a flat array: NumPy's is the core, a tensor's depends on its device."""
    return core if isinstance(array, np.ndarray) else on_device(array.device)


def on_device(device: torch.device) -> Backend:
    """The backend for tensors on a device."""
    if device.type == "cpu":
        return core
    if device.type == "cuda" and has_cuda():
        from pysoftq.interaction.backends import cuda

        return cuda
    from pysoftq.interaction.backends import plain

    return plain


@functools.cache
def has_cuda() -> bool:
    """Whether the CUDA kernels were built and can use the devices that torch uses.

    Warns:
        UserWarning: they were built, torch has CUDA devices, but the kernels cannot use them.
    """
    import torch

    # ROCm calls its devices "cuda" too.
    if torch.version.hip is not None or find_spec("pysoftq._cuda") is None:
        return False
    if not torch.cuda.is_available():
        return False
    fault = _cuda_fault(
        [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    )
    if fault is not None:
        warnings.warn(
            f"the CUDA kernels cannot be used, torch operations take their place: {fault}",
            stacklevel=2,
        )
    return fault is None


def _cuda_fault(capabilities: Sequence[tuple[int, int]]) -> str | None:
    """What keeps the CUDA kernels from using torch's devices, None if nothing does.

    The kernels have a CUDA runtime of their own, whose version the driver may not support, and are
    compiled for some compute capabilities (major, minor).
    """
    try:
        from pysoftq import _cuda

        found = _cuda.device_count()
    except (ImportError, RuntimeError) as error:
        return f"{error} (rebuild pysoftq with the CUDA version of torch, or update the driver)"
    if found != len(capabilities):
        return f"they find {found} CUDA devices, torch {len(capabilities)}"
    for major, minor in capabilities:
        if not any(_runs_on(word, major, minor) for word in _cuda.architectures.split()):
            return (
                f"they were built for architectures {_cuda.architectures}, and a GPU has compute "
                f"capability {major}.{minor} (rebuild pysoftq with "
                f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={major}{minor})"
            )
    return None


def _runs_on(architecture: str, major: int, minor: int) -> bool:
    """Whether code for an architecture in CMake's words, such as 80-real, runs on a device."""
    number = re.match(r"(\d+)(\d)([af]?)(-real|-virtual|)$", architecture)
    if number is None:  # native, all, all-major
        return True
    built, revision, specific, kind = number.groups()
    alike = int(built) == major and int(revision) <= minor
    if specific:
        return alike
    # Machine code runs within a major version, PTX on everything newer.
    newer = (int(built), int(revision)) <= (major, minor)
    return (alike and kind != "-virtual") or (newer and kind != "-real")
