"""Codebooks as what is trained; each weight stays in its cluster, or may move to another one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.clusters.assignment import Assignment
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import unique


class Codebooks:
    """The codebooks of some of a model's weight tensors, to be trained by any PyTorch loop.

    Writes the clusters' values into the model, and again after each step of an optimizer that it
    is attached to. Before the step each value gets its gradient, the sum of its weights'
    gradients; these are cleared, since the optimizer does not know the weights:

        codebooks = Codebooks(model, clusters)
        optimizer = torch.optim.Adam([*codebooks.parameters(), *codebooks.rest()])
        codebooks.attach(optimizer)

    Given the ``weights`` that the clusters were found in, these train too, and may move from one
    cluster to another: the gradient at a weight's value passes straight through to the weight
    (Bengio, Léonard and Courville, arXiv:1308.3432), and after each step it goes to the cluster of
    the least squared error plus its rate-distortion weight times the length of the code word,
    -log2 of the cluster's share. A separate optimizer trains them, stepping before the values are
    written:

        codebooks = Codebooks(model, clusters, weights, softq.rd_weights(0.1))
        sgd = torch.optim.SGD(codebooks.weights(), lr=0.01, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_: sgd.step())
        codebooks.attach(optimizer)

    Args:
        model: any module.
        clusters: by parameter name; K never rises.
        weights: by the same names, of the parameters' shapes; None keeps each weight in its
            cluster.
        rd_weights: rate-distortion weights by the same names, in units of the weights squared per
            bit, 0 or more; without one, each weight goes to the nearest value.

    Raises:
        ValueError: no clusters, a name that is no parameter of the model, clusters or weights of
            another number, weights that are not finite, or a negative rate-distortion weight.
    """

    def __init__(
        self,
        model: nn.Module,
        clusters: Mapping[str, Clusters],
        weights: Mapping[str, Tensor] | None = None,
        rd_weights: Mapping[str, float] | None = None,
    ) -> None:
        if not clusters:
            raise ValueError("there are no clusters, so no codebook to train")
        parameters = dict(model.named_parameters())
        for name, found in clusters.items():
            if name not in parameters:
                raise ValueError(f"clusters of '{name}', which is no parameter of the model")
            if parameters[name].numel() != found.size:
                raise ValueError(
                    f"layer '{name}' has {parameters[name].numel()} weights, "
                    f"its clusters {found.size}"
                )
        self.model = model
        self._quantized = {name: parameters[name] for name in clusters}
        self._indices = {
            name: found.indices.to(parameters[name].device) for name, found in clusters.items()
        }
        self._bounds = {name: found.bounds for name, found in clusters.items()}
        self.values = {
            name: nn.Parameter(found.codebook.to(parameters[name]).clone())
            for name, found in clusters.items()
        }
        self._moving: dict[str, _Moving] = {}
        if weights is not None:
            if missing := clusters.keys() - weights.keys():
                raise ValueError(f"no weights of '{min(missing)}', which has clusters")
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

    def parameters(self) -> list[nn.Parameter]:
        """The codebooks (K,), one for each tensor."""
        return list(self.values.values())

    def weights(self) -> list[nn.Parameter]:
        """The weights (N,) that may move."""
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

        Gradients that the weights have now are forgotten.
        """
        for weights in self._quantized.values():
            weights.grad = None
        optimizer.register_step_pre_hook(lambda *_: self.sum_gradients())
        optimizer.register_step_post_hook(lambda *_: self.write())

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Turn the gradients of the weights into those of the codebooks; clears the former."""
        for name, value in self.values.items():
            gradient = self._quantized[name].grad
            if gradient is None:
                value.grad = None
            else:
                value.grad = torch.zeros_like(value).index_add_(
                    0, self._indices[name], gradient.reshape(-1)
                )
            if name in self._moving:
                self._moving[name].take(gradient)
            if gradient is not None:
                gradient.zero_()  # in place: a CUDA graph writes there again

    @torch.no_grad()
    def write(self) -> None:
        """Assign the weights that may move, and put each weight's value into the model."""
        for name, value in self.values.items():
            if name in self._moving:
                self._indices[name] = self._moving[name].assign(value, self._indices[name])
            weights = self._quantized[name]
            weights.copy_(value[self._indices[name]].reshape(weights.shape))

    def clusters(self) -> dict[str, Clusters]:
        """The clusters with their present values, ascending; those of equal value become one.

        Segments keep codebooks of their own.
        """
        return {name: self._sorted(name) for name in self.values}

    def _sorted(self, name: str) -> Clusters:
        weights = self.values[name].detach() + 0.0  # one zero, not two
        return unique(weights[self._indices[name]], self._bounds[name])


class _Moving:
    """The weights of one tensor that train, and the clusters that they go to."""

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
                f"layer '{name}': {weights.numel()} weights for clusters of {clusters.size}"
            )
        if not weights.isfinite().all():
            raise ValueError(f"layer '{name}' has weights that are NaN or infinite")
        if not (math.isfinite(rd_weight) and rd_weight >= 0):
            raise ValueError(
                f"layer '{name}': the rate-distortion weight must be >= 0, got {rd_weight}"
            )
        self._rd_weight = rd_weight
        # A copy, in float32 even where the model's own are coarser than the steps.
        flat = weights.detach().reshape(-1).to(device, torch.float32, copy=True)
        self.weights = nn.Parameter(flat)
        self._assignment = Assignment(clusters, device)

    def take(self, gradient: Tensor | None) -> None:
        """The gradient at the weights' values becomes that of the weights."""
        copied = None if gradient is None else gradient.reshape(-1).to(torch.float32, copy=True)
        self.weights.grad = copied

    def assign(self, values: Tensor, indices: Tensor) -> Tensor:
        """The clusters (N,) of the weights as they are now."""
        return self._assignment(self.weights, values.float(), indices, self._rd_weight)
