"""Gradients of the clusters' values: sums over their weights, whatever the order of these.

Gradients become integers in units of a power of two, in proportion to the largest of the layer. So
the sums are the same for any number of threads and processes, and on every device. A term is
rounded to 2^-51 of the largest gradient; in a layer of N > 2^11 weights to N 2^-62 of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pysoftq import _core
from pysoftq.clusters.clusters import PIECE
from pysoftq.interaction.weights import scalar_of

_BITS = 51  # of a term
_SUM_BITS = 62
_BIAS, _MANTISSA = 1023, 52  # of float64
_MOST = 1000  # of an exponent: both powers are normal numbers


def largest(gradient: Tensor) -> Tensor:
    """The largest absolute gradient, () float64; inf if one is not finite."""
    if not gradient.numel():
        return torch.zeros((), dtype=torch.float64, device=gradient.device)
    low, high = gradient.aminmax()
    return torch.maximum(-low, high).double().nan_to_num_(math.inf, math.inf)


class Units(NamedTuple):
    """The units that gradients of a layer are counted in: numbers, or () float64 of a device.

    Attributes:
        scale: units of a gradient of 1; 0 if a gradient is not finite.
        size: the gradient of a unit; NaN if a gradient is not finite.
    """

    scale: Tensor | float
    size: Tensor | float

    @classmethod
    def of(cls, largest: Tensor, weights: int) -> Units:
        """For so many weights, () the largest of whose gradients is given."""
        bits = min(_BITS, _SUM_BITS - max(weights - 1, 1).bit_length())
        if largest.device.type != "cpu":
            return cls.on_device(largest, bits)
        top = float(largest)
        if not math.isfinite(top):
            return cls(0.0, math.nan)
        power = min(max(bits - math.frexp(top)[1], -_MOST), _MOST)
        return cls(math.ldexp(1.0, power), math.ldexp(1.0, -power))

    @classmethod
    def on_device(cls, largest: Tensor, bits: int) -> Units:
        """For terms of so many bits, by operations of PyTorch, which do not wait for the device."""
        exponent = (bits - largest.frexp().exponent.long()).clamp(-_MOST, _MOST)
        fit = largest.isfinite()
        powers = _power(exponent), _power(-exponent)
        return cls(torch.where(fit, powers[0], 0.0), torch.where(fit, powers[1], math.nan))

    def sums(self, gradient: Tensor, clusters: Tensor, number: int) -> Tensor:
        """The sum over the weights of each cluster, in units, int64 (K,).

        Args:
            gradient: (N,) of any floating dtype.
            clusters: (N,) int32.
            number: K.
        """
        if gradient.device.type != "cpu":
            found = torch.zeros(number, dtype=torch.int64, device=gradient.device)
            for part, own in zip(gradient.split(PIECE), clusters.split(PIECE), strict=True):
                terms = part.double().mul_(self.scale).round_().nan_to_num_(0, 0, 0)
                found.index_add_(0, own, terms.long())
            return found
        factor = float(self.scale)
        if not factor:
            return torch.zeros(number, dtype=torch.int64)
        own, places = gradient.contiguous(), clusters.contiguous()
        addresses = own.data_ptr(), scalar_of(own.dtype), places.data_ptr()
        return torch.from_numpy(_core.sum_by_cluster(*addresses, len(own), number, factor))

    def gradients(self, sums: Tensor) -> Tensor:
        """The sums as float64; NaN where a gradient of the layer is not finite."""
        return sums.double() * self.size


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, exactly: other functions round on some devices."""
    return ((exponent + _BIAS) << _MANTISSA).view(torch.float64)
