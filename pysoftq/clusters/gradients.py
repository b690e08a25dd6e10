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
    """The units that gradients of a layer are counted in.

    Attributes:
        exponent: () int64: a gradient of 2^-exponent is 1.
        fit: () bool, whether all gradients are finite.
    """

    exponent: Tensor
    fit: Tensor

    @classmethod
    def of(cls, largest: Tensor, size: int) -> Units:
        """For so many weights, () the largest of whose gradients is given."""
        bits = min(_BITS, _SUM_BITS - max(size - 1, 1).bit_length())
        exponent = bits - largest.frexp().exponent.long()
        return cls(exponent.clamp(-_MOST, _MOST), largest.isfinite())

    def sums(self, gradient: Tensor, clusters: Tensor, number: int) -> Tensor:
        """The sum over the weights of each cluster, in units, int64 (K,).

        Args:
            gradient: (N,) of any floating dtype.
            clusters: (N,) int32.
            number: K.
        """
        scale = torch.where(self.fit, _power(self.exponent), 0.0)
        if gradient.device.type != "cpu":
            found = torch.zeros(number, dtype=torch.int64, device=gradient.device)
            for part, own in zip(gradient.split(PIECE), clusters.split(PIECE), strict=True):
                terms = part.double().mul_(scale).round_().nan_to_num_(0, 0, 0)
                found.index_add_(0, own, terms.long())
            return found
        factor = float(scale)
        if not factor:
            return torch.zeros(number, dtype=torch.int64)
        own, places = gradient.contiguous(), clusters.contiguous()
        addresses = own.data_ptr(), scalar_of(own.dtype), places.data_ptr()
        return torch.from_numpy(_core.sum_by_cluster(*addresses, len(own), number, factor))

    def gradients(self, sums: Tensor) -> Tensor:
        """The sums as float64; NaN where a gradient of the layer is not finite."""
        return sums.double() * torch.where(self.fit, _power(-self.exponent), math.nan)


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, exactly: other functions round on some devices."""
    return ((exponent + _BIAS) << _MANTISSA).view(torch.float64)
