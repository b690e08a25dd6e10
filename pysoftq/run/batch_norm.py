"""Batch normalisation over batches that several processes divide between them.

Means and variances are those of the whole batch, so they do not depend on the number of processes,
and running means are the same in all of them. `torch.nn.SyncBatchNorm` does so on GPUs only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class WholeBatchNorm(_BatchNorm):
    """Batch normalisation (B, C, …) that is trained on the batch of all processes.

    Attributes:
        copies: how many processes have the same examples.
    """

    copies = 1

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        del input  # the layer that this one has taken the place of was made for it

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise; in training, all processes do so together."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalised.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            count = count / self.copies
            self._track(mean, variance * (count / (count - 1)))
        result: Tensor = output
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # the mean of all batches
            share = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def normalise_together(model: nn.Module) -> None:
    """Let the batch normalisation of a model see the batches of all processes.

    Layers stay where they are, with their parameters, buffers and names.
    """
    for module in model.modules():
        if type(module) in _KINDS:
            module.__class__ = WholeBatchNorm


class _Normalised(torch.autograd.Function):
    """The normalised batch, and its mean, biased variance and number of values per channel."""

    @staticmethod
    def forward(
        ctx: Any, batch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = batch.numel() // batch.shape[1]
        variance, mean = torch.var_mean(_exact(batch), _others(batch), correction=0)
        sums = torch.cat([mean * own, mean.new_tensor([own])])
        dist.all_reduce(sums)
        count = sums[-1]
        whole_mean = sums[:-1] / count
        # About the common mean: the difference of mean squares would lose digits.
        whole_variance = (variance + (mean - whole_mean).square()) * own
        dist.all_reduce(whole_variance)
        whole_variance /= count
        output = F.batch_norm(batch, whole_mean, whole_variance, weight, bias, eps=eps)
        ctx.save_for_backward(batch, weight, whole_mean, (whole_variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(whole_mean, whole_variance, count)
        return output, whole_mean, whole_variance, count

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        batch, weight, mean, scale, count = ctx.saved_tensors
        others = _others(batch)
        shape = [1, -1, *[1] * (batch.dim() - 2)]
        slope = _exact(gradient)
        normalised = (_exact(batch) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([slope.sum(others), (slope * normalised).sum(others)])
        sums = own.clone()
        dist.all_reduce(sums)
        sums /= count
        slope = slope - sums[0].view(shape) - normalised * sums[1].view(shape)
        factor = scale if weight is None else scale * weight
        found = (slope * factor.view(shape)).to(batch.dtype)
        if weight is None:
            return found, None, None, None
        return found, own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _exact(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _others(batch: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, batch.dim())]
