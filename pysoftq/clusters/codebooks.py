"""Trainable codebooks; weights keep their clusters or move between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.clusters.assignment import Assignment, Moved
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import unique
from pysoftq.clusters.written import mark_clusters
from pysoftq.interaction.arrays import check_dense
from pysoftq.interaction.host import on_host
from pysoftq.models.wrappers import torch_optimizer, unwrapped


class Codebooks:
    """The codebooks of a model's weight tensors as parameters for any PyTorch training loop.

    Writes the clusters' values into the model, and again after each step of an attached optimizer.
    Before the step, the gradient of each value is set to the sum of the gradients of its weights;
    the weights' gradients are cleared, since the optimizer does not hold the weights. Pinned zeros
    of the clusters get no gradient:

        codebooks = Codebooks(model, clusters)
        optimizer = torch.optim.Adam([*codebooks.parameters(), *codebooks.rest()])
        codebooks.attach(optimizer)

    With ``weights``, the weights before clustering, these train too and may change clusters: the
    gradient at a weight's value is passed to the weight (straight-through estimator: Bengio,
    Léonard and Courville, arXiv:1308.3432). After each step a weight is assigned to the cluster of
    the least squared error plus rate-distortion weight times the length of the code word, -log2 of
    the cluster's share. A separate optimizer trains the weights, and steps before the values are
    written:

        codebooks = Codebooks(model, clusters, weights, softq.rd_weights(0.1))
        sgd = torch.optim.SGD(codebooks.weights(), lr=0.01, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_: sgd.step())
        codebooks.attach(optimizer)

    Copies and pickles take the model and the attached optimizers along, and are attached to those;
    a shallow copy is not attached.

    Args:
        model: any module; of a wrapped one parameters have the names of the model inside.
        clusters: by parameter name; K never rises.
        weights: by the same names, of the parameters' shapes; None keeps each weight in its
            cluster.
        rd_weights: rate-distortion weights by the same names, in units of the weights squared per
            bit, 0 or more; the default 0 assigns each weight to the nearest value.

    Raises:
        ValueError: no clusters, a name that is not a parameter of the model, a different number of
            weights, weights that are not finite, or a negative rate-distortion weight.
    """

    @on_host()
    def __init__(
        self,
        model: nn.Module,
        clusters: Mapping[str, Clusters],
        weights: Mapping[str, Tensor] | None = None,
        rd_weights: Mapping[str, float] | None = None,
    ) -> None:
        if not clusters:
            raise ValueError("`clusters` must not be empty")
        parameters = dict(unwrapped(model).named_parameters())
        for name, found in clusters.items():
            if name not in parameters:
                raise ValueError(f"clusters of '{name}', which is not a parameter of the model")
            check_dense(parameters[name], f"layer '{name}'")
            if parameters[name].numel() != found.size:
                raise ValueError(
                    f"layer '{name}': clusters of {found.size} weights for "
                    f"{parameters[name].numel()} weights"
                )
        self.model = model
        self._optimizers: tuple[Optimizer, ...] = ()
        self._quantized = {name: parameters[name] for name in clusters}
        self._indices = {
            name: found.indices.to(parameters[name].device, torch.int32)
            for name, found in clusters.items()
        }
        self._bounds = {name: found.bounds for name, found in clusters.items()}
        self._pinned = {
            name: found.pinned.to(parameters[name].device)
            for name, found in clusters.items()
            if found.pinned.any()
        }
        self.values = {
            name: nn.Parameter(found.codebook.to(parameters[name]).clone())
            for name, found in clusters.items()
        }
        self._moving: dict[str, _Moving] = {}
        if weights is not None:
            if missing := clusters.keys() - weights.keys():
                raise ValueError(f"layer '{min(missing)}': clusters without `weights`")
            self._moving = {
                name: _Moving(
                    name,
                    weights[name],
                    found,
                    (rd_weights or {}).get(name, 0.0),
                    parameters[name].device,
                )
                for name, found in clusters.items()
            }
        self.write()
        mark_clusters(model, clusters)

    def parameters(self) -> list[nn.Parameter]:
        """The codebooks (K,), one for each tensor."""
        return list(self.values.values())

    def weights(self) -> list[nn.Parameter]:
        """The weights (N,) of each tensor that may change clusters."""
        return [moving.weights for moving in self._moving.values()]

    def rest(self) -> list[nn.Parameter]:
        """The model's other parameters that are trained: biases, normalisation."""
        quantized = {id(weights) for weights in self._quantized.values()}
        return [
            parameter
            for parameter in self.model.parameters()
            if parameter.requires_grad and id(parameter) not in quantized
        ]

    def attach(self, optimizer: Optimizer) -> None:
        """Sum gradients before each step of the optimizer; assign and write the weights after it.

        Present gradients of the weights are discarded.

        Raises:
            TypeError: it is not an optimizer of torch.optim, nor holds one.
        """
        inner = torch_optimizer(optimizer)
        self._optimizers = (*self._optimizers, inner)
        for weights in self._quantized.values():
            weights.grad = None
        self._register(inner)

    def _register(self, optimizer: Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: self.sum_gradients())
        optimizer.register_step_post_hook(lambda *_: self.write())

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and pickles of an optimizer are without hooks.
        self.__dict__.update(state)
        for optimizer in self._optimizers:
            self._register(optimizer)

    def __copy__(self) -> Codebooks:
        # Attached to the same optimizers, it would sum the gradients a second time.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _optimizers=())
        return other

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Set the gradients of the codebooks from those of the weights, and clear the latter."""
        for name, value in self.values.items():
            gradient = self._quantized[name].grad
            if gradient is None:
                value.grad = None
            else:
                value.grad = torch.zeros_like(value).index_add_(
                    0, self._indices[name], gradient.reshape(-1)
                )
                if name in self._pinned:
                    value.grad.masked_fill_(self._pinned[name], 0)
            if name in self._moving:
                self._moving[name].take(gradient)
            if gradient is not None:
                gradient.zero_()  # in place, since a CUDA graph writes to this memory again

    @torch.no_grad()
    def write(self) -> None:
        """Assign the weights that may move, and write each weight's value into the model."""
        for name, value in self.values.items():
            weights, indices = self._quantized[name], self._indices[name]
            moving = self._moving.get(name)
            if moving is not None and moving.in_place(weights, value):
                moving.move(value, indices, weights)
                continue
            if moving is not None:
                indices = self._indices[name] = moving.assign(value, indices)
            weights.copy_(value.index_select(0, indices).reshape(weights.shape))

    def clusters(self) -> dict[str, Clusters]:
        """The clusters with their present values, ascending; those of equal value become one.

        Each segment keeps its own codebook.
        """
        return {name: self._sorted(name) for name in self.values}

    def _sorted(self, name: str) -> Clusters:
        values = self.values[name].detach() + 0.0  # -0.0 becomes 0.0
        found = unique(values.index_select(0, self._indices[name]), self._bounds[name])
        return replace(found, zeros=name in self._pinned)


class _Moving:
    """The trained weights of one tensor and their assignment to clusters."""

    def __init__(
        self,
        name: str,
        weights: Tensor,
        clusters: Clusters,
        rd_weight: float,
        device: torch.device,
    ) -> None:
        if weights.numel() != clusters.size:
            raise ValueError(
                f"layer '{name}': clusters of {clusters.size} weights for {weights.numel()} weights"
            )
        if not weights.isfinite().all():
            raise ValueError(f"layer '{name}': weights are NaN or infinite")
        if not (math.isfinite(rd_weight) and rd_weight >= 0):
            raise ValueError(
                f"layer '{name}': `rd_weights` must be finite and >= 0, got {rd_weight}"
            )
        self._rd_weight = rd_weight
        # A copy in float32, as steps can be smaller than the precision of the model's weights.
        flat = weights.detach().reshape(-1).to(device, torch.float32, copy=True)
        self.weights = nn.Parameter(flat)
        self._assignment = Assignment(clusters, device)
        # Weights that are exactly 0 stay in their cluster, that of the pinned zeros.
        self._kept = (flat == 0) if clusters.pinned.any() else None
        self._counts = clusters.counts.to("cpu", torch.int64, copy=True)

    def take(self, gradient: Tensor | None) -> None:
        """Copy the gradient at the weights' values to the weights."""
        copied = None if gradient is None else gradient.reshape(-1).to(torch.float32, copy=True)
        if copied is not None and self._kept is not None:
            copied.masked_fill_(self._kept, 0)
        self.weights.grad = copied

    def in_place(self, out: Tensor, values: Tensor) -> bool:
        """Whether `move` can write these values where the parameter's weights are."""
        fits = out.is_contiguous() and out.dtype == values.dtype and out.itemsize > 1
        return fits and out.device.type == "cpu"

    def move(self, values: Tensor, indices: Tensor, out: Tensor) -> None:
        """Assign the present weights and write their values, in place."""
        moved = Moved(indices, self._counts, out)
        rest = (values.detach(), self._rd_weight, self._kept, moved)
        self._assignment.move(self.weights.detach(), *rest)
        torch.autograd.graph.increment_version(out)

    def assign(self, values: Tensor, indices: Tensor) -> Tensor:
        """The clusters (N,) of the present weights."""
        found = self._assignment(self.weights, values.float(), indices, self._rd_weight).int()
        return found if self._kept is None else torch.where(self._kept, indices, found)
