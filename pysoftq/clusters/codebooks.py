"""Trainable codebooks; weights keep their clusters or move between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.clusters.assignment import Assignment, Moved
from pysoftq.clusters.clusters import Clusters, Palette, code_dtype
from pysoftq.clusters.gradients import Units, largest
from pysoftq.clusters.values import join_equal
from pysoftq.clusters.written import mark_clusters
from pysoftq.interaction.arrays import check_dense
from pysoftq.interaction.host import on_host
from pysoftq.interaction.pieces import (
    Piece,
    Ranks,
    is_divided,
    own_gradient,
    own_part,
    size_of,
)
from pysoftq.interaction.ranks import digest
from pysoftq.models.claims import claim, refuse_claimed
from pysoftq.models.sharding import Sharding, distributed_like, divided_like
from pysoftq.models.steps import StepHooks, several_evaluations
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

    With ``weights``, the weights before clustering, these train too and may change clusters. They
    take the place of their values in the model for the time of a step, with the gradients at the
    values (straight-through estimator: Bengio, Léonard and Courville, arXiv:1308.3432), so the
    optimizer that holds the model's parameters trains them. After each step a weight is assigned to
    the cluster of the least squared error plus rate-distortion weight times the length of the code
    word, -log2 of the cluster's share. The values may have a separate optimizer, called
    within the step of the first:

        codebooks = Codebooks(model, clusters, weights, softq.rd_weights(0.1))
        values = torch.optim.Adam(codebooks.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_: values.step())
        codebooks.attach(optimizer)

    Copies and pickles take the model and the attached optimizers along, and are attached to those;
    a shallow copy is not attached.

    A value's gradient is a sum of integers (`pysoftq.clusters.gradients`), the same for any number
    of threads. Where several processes hold the weights in pieces (DTensor), all of them make the
    same calls, and values and clusters are those of one process with the same gradients, bit by
    bit.

    Args:
        model: any module; of a wrapped one parameters have the names of the model inside.
        clusters: by parameter name; K never rises.
        weights: by the same names, of the parameters' shapes; None keeps each weight in its
            cluster. Of a DTensor another one that is divided alike, or all weights.
        rd_weights: rate-distortion weights by the same names, in units of the weights squared per
            bit, 0 or more; the default 0 assigns each weight to the nearest value.

    Attributes:
        model: as given.
        values: the codebooks (K,) as parameters, by name; in float32 where the model is narrower,
            as steps can be smaller than its precision.

    Raises:
        ValueError: no clusters, a name that is not a parameter of the model, a different number of
            weights, weights that are not finite, or a negative rate-distortion weight; processes
            that hold pieces differ in the clusters.
    """

    @on_host()
    def __init__(
        self,
        model: nn.Module,
        clusters: Mapping[str, Clusters],
        weights: Mapping[str, Tensor] | None = None,
        rd_weights: Mapping[str, float] | None = None,
    ) -> None:
        sharding = Sharding(model)
        parameters = dict(unwrapped(model).named_parameters())
        sharding.ranks.attempt(lambda: _check_names(clusters, parameters, weights))
        if sharding:
            sharding.compare({"the clusters": _facts(clusters), "rd_weights": rd_weights})
        pieces = {name: sharding.piece(name, parameters[name]) for name in clusters}
        if weights is not None:
            weights = {name: divided_like(parameters[name], weights[name]) for name in clusters}

        def layer_of(name: str) -> _Layer:
            layer = _Layer(name, parameters[name], clusters[name], pieces[name])
            if weights is not None:
                layer.let_move(weights[name], (rd_weights or {}).get(name, 0.0))
            return layer

        self.model = model
        self._optimizer: Optimizer | None = None
        self._lent = False  # whether trained weights are in the place of their values
        self._summed = False  # whether the gradients of the next step are those of the values
        self._layers = sharding.ranks.attempt(lambda: {name: layer_of(name) for name in clusters})
        self.values = {
            name: nn.Parameter(self._layers[name].trained(found.codebook))
            for name, found in clusters.items()
        }
        self.write()
        mark_clusters(model, clusters)

    def parameters(self) -> list[nn.Parameter]:
        """The codebooks (K,), one for each tensor."""
        return list(self.values.values())

    def weights(self) -> list[nn.Parameter]:
        """The model's parameters whose weights may change clusters."""
        return [layer.parameter for layer in self._layers.values() if layer.moving is not None]

    def counts(self) -> dict[str, Tensor]:
        """How many weights each value has at present, (K,) int64; 0 of a cluster that is empty."""
        return {name: layer.counts for name, layer in self._layers.items()}

    def set_rd_weights(self, rd_weights: Mapping[str, float]) -> None:
        """Assign by other rate-distortion weights from the next step on."""
        for name, rd_weight in rd_weights.items():
            self._layers[name].set_rd_weight(rd_weight)

    def set_counts(self, counts: Mapping[str, Tensor]) -> None:
        """Assign by the code lengths of other numbers of weights (K,) in the next step."""
        for name, own in counts.items():
            self._layers[name].counts.copy_(own)

    @torch.no_grad()
    def lend(self) -> None:
        """Let the weights that may move take the place of their values, until `write`."""
        self._lent = True
        for layer in self._layers.values():
            if layer.moving is not None:
                layer.moving.lend(layer.weights)

    def take_back(self) -> None:
        """Put the values in place again where a step has raised, as after the step."""
        if self._lent:
            self.after_step()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What `restore` continues from bit for bit, by name: plain values and tensors.

        What belongs to the weights has the shape of the parameter, and is divided between the
        processes as that is (DTensor), for torch.distributed.checkpoint.
        """
        return {name: layer.state(self.values[name]) for name, layer in self._layers.items()}

    @classmethod
    @torch.no_grad()
    def restore(cls, model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> Codebooks:
        """The codebooks of a state, whose values are written into the model; not attached.

        Raises:
            ValueError: a name is not a parameter of the model, or has another number of weights.
        """
        clusters = {name: _clusters_of(own) for name, own in state.items()}
        moving = [own["weights"] is not None for own in state.values()]
        weights = {name: own["weights"] for name, own in state.items()} if all(moving) else None
        found = cls(
            model, clusters, weights, {name: own["rd_weight"] for name, own in state.items()}
        )
        for name, own in state.items():
            found.values[name].copy_(own["value"])
            found._layers[name].resume(own, found.values[name])
        return found

    def rest(self) -> list[nn.Parameter]:
        """The model's other parameters that are trained: biases, normalisation."""
        quantized = {id(layer.parameter) for layer in self._layers.values()}
        return [
            parameter
            for parameter in self.model.parameters()
            if parameter.requires_grad and id(parameter) not in quantized
        ]

    def attach(self, optimizer: Optimizer) -> None:
        """Sum gradients before each step of the optimizer; assign and write the weights after it.

        Weights that may move are in the model for the time of the step. Present gradients of the
        weights are discarded. A closure is understood if the optimizer evaluates it once.

        A GradScaler unscales the gradients of the optimizer's parameters before the step. Unless
        the optimizer is fused, those of the values must be there by then:
        `codebooks.sum_gradients(); scaler.step(optimizer)`.

        Raises:
            TypeError: it is not an optimizer of torch.optim, nor holds one.
            ValueError: another object of this package trains the same weights in its steps.
            RuntimeError: already attached.
        """
        if self._optimizer is not None:
            raise RuntimeError("already attached: one optimizer's steps train all values")
        inner = torch_optimizer(optimizer)
        refuse_claimed(inner, {name: layer.parameter for name, layer in self._layers.items()})
        self._optimizer, self._summed = inner, False
        for layer in self._layers.values():
            layer.parameter.grad = None
        self._register()

    def _register(self) -> None:
        if self._optimizer is not None:
            StepHooks(self._optimizer, self._before, lambda _: self.after_step())
            claim(self._optimizer, self, (layer.parameter for layer in self._layers.values()))

    def _before(self, _: Optimizer, evaluation: int) -> None:
        if evaluation > 1:
            self.take_back()
            raise several_evaluations(self)
        self.before_step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and pickles of an optimizer are without hooks.
        self.__dict__.update(state)
        self._register()

    def __copy__(self) -> Codebooks:
        # Attached to the same optimizer, it would sum the gradients a second time.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _optimizer=None)
        return other

    @torch.no_grad()
    def before_step(self) -> None:
        """Sum the gradients, and let the weights that may move take the place of their values."""
        if not self._summed:
            self.sum_gradients()
        self._summed = False
        self.lend()

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the weights back, assign them, and write each one's value into the model."""
        for layer in self._layers.values():
            if self._lent and layer.moving is not None:
                layer.moving.take(layer.weights)
        self.write()

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Set the gradients of the codebooks from those of the weights.

        The next step does so unless it is done. Gradients of weights that keep their clusters are
        cleared, and those of zeros that are kept. Of a layer in which one is NaN or infinite, all
        values get NaN.
        """
        self._summed = True
        for ranks, names in self._by_ranks().items():
            layers = [self._layers[name] for name in names]
            gradients = [own_gradient(layer.parameter) for layer in layers]
            units = _units(layers, gradients, ranks)
            sums = _sums(layers, gradients, units, ranks)
            for name, layer, unit, own in zip(names, layers, units, sums, strict=True):
                value = self.values[name]
                value.grad = None if unit is None else unit.gradients(own).to(value)
                if value.grad is not None and layer.pinned is not None:
                    value.grad.masked_fill_(layer.pinned, 0)
            for layer, gradient in zip(layers, gradients, strict=True):
                if gradient is not None:
                    layer.clear(gradient)

    @torch.no_grad()
    def write(self) -> None:
        """Assign the weights that may move, and write each weight's value into the model."""
        self._lent = False
        for name, layer in self._layers.items():
            layer.write(self.values[name])
        for ranks, names in self._by_ranks().items():
            moving = [layer for layer in map(self._layers.get, names) if layer and layer.moving]
            if ranks is not None and moving:
                _share_counts(moving, ranks)

    @on_host()
    def palettes(self) -> dict[str, Palette]:
        """The same as `clusters`, without the cluster of each weight."""
        return {name: layer.palette(self.values[name])[0] for name, layer in self._layers.items()}

    @on_host()
    def clusters(self) -> dict[str, Clusters]:
        """The clusters with their present values, ascending; those of equal value become one.

        Each segment keeps its own codebook.
        """
        return {name: layer.clusters(self.values[name]) for name, layer in self._layers.items()}

    def _by_ranks(self) -> dict[Ranks | None, list[str]]:
        """The names of the layers that the same processes hold in pieces; None for whole ones."""
        found: dict[Ranks | None, list[str]] = {}
        for name, layer in self._layers.items():
            found.setdefault(None if layer.piece is None else layer.piece.ranks, []).append(name)
        return found


class _Layer:
    """A tensor of the model: its weights in this process, and the cluster of each.

    Attributes:
        parameter: of the model.
        piece: which weights are in this process; None for all.
        indices: (n,) int32, of these.
        counts: (K,) int64, weights of each cluster in all processes.
        pinned: (K,) bool, clusters that keep their value; None if there are none.
        moving: the trained weights, where these may change clusters.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, clusters: Clusters, piece: Piece | None
    ) -> None:
        check_dense(own_part(parameter), f"layer '{name}'")
        self.name = name
        self.parameter = parameter
        self.piece = piece
        self._check_size(clusters, parameter)
        device = self.weights.device
        own = clusters if piece is None or clusters.piece is not None else clusters.cut(piece)
        table = torch.arange(own.K, dtype=torch.int32, device=own.codes.device)
        self.indices = own.look_up(table).to(device)
        self._edges = own.edges
        self.counts = clusters.counts.to(device, torch.int64, copy=True)
        self.pinned = clusters.pinned.to(device) if clusters.pinned.any() else None
        self.moving: _Moving | None = None
        self._palette = Palette(own.codebook, own.counts, own.bounds, own.zeros)

    @property
    def weights(self) -> Tensor:
        """Those in this process."""
        return self.parameter if self.piece is None else own_part(self.parameter)

    def trained(self, codebook: Tensor) -> Tensor:
        """A copy of values, as they are trained."""
        wide = torch.promote_types(self.parameter.dtype, torch.float32)
        return codebook.to(self.weights).to(wide, copy=True)

    def written(self, value: Tensor) -> Tensor:
        """Trained values, as they are in the model."""
        return value.detach().to(self.parameter.dtype)

    def let_move(self, weights: Tensor, rd_weight: float) -> None:
        """Let the weights change clusters from now on."""
        self._check_size(self._palette, weights)
        flat = self._own(weights).detach()
        if flat.numel() != self.indices.numel():
            raise ValueError(f"layer '{self.name}': `weights` are not divided as the parameter")
        if not flat.isfinite().all():
            raise ValueError(f"layer '{self.name}': weights are not finite (NaN or inf)")
        # A copy in float32, as steps can be smaller than the precision of the model's weights.
        flat = flat.to(self.indices.device, torch.float32, copy=True)
        kept = (flat == 0) if self.pinned is not None else None
        assignment = Assignment(self._palette, flat.device, self._edges)
        self.moving = _Moving(flat, assignment, kept)
        self.set_rd_weight(rd_weight)

    def set_rd_weight(self, rd_weight: float) -> None:
        """Assign by this rate-distortion weight, if weights may move."""
        if not (math.isfinite(rd_weight) and rd_weight >= 0):
            raise ValueError(
                f"layer '{self.name}': `rd_weights` must be finite and >= 0, got {rd_weight}"
            )
        if self.moving is not None:
            self.moving.rd_weight = rd_weight

    def clear(self, gradient: Tensor) -> None:
        """Clear what the optimizer must not see of a gradient of the weights."""
        if self.moving is None:
            gradient.zero_()  # in place, since a CUDA graph writes to this memory again
        elif self.moving.kept is not None:
            gradient.masked_fill_(self.moving.kept.view(gradient.shape), 0)

    def state(self, value: Tensor) -> dict[str, Any]:
        """Of `Codebooks.state_dict`."""
        first, codes = self._palette, code_dtype(self._palette.K)
        moving = self.moving
        return {
            "codebook": first.codebook,
            "counts": first.counts,
            "bounds": first.bounds,
            "zeros": first.zeros,
            "value": value.detach(),
            "present": self.counts,
            "indices": self._like_parameter(self.indices.to(codes)),
            "weights": None if moving is None else self._like_parameter(moving.weights),
            "rd_weight": 0.0 if moving is None else moving.rd_weight,
        }

    def resume(self, state: Mapping[str, Any], value: Tensor) -> None:
        """Put clusters and counts of a state in place, and write the values."""
        self.counts.copy_(state["present"])
        self.indices.copy_(self._own(divided_like(self.parameter, state["indices"])))
        self._put(self.written(value))

    def _like_parameter(self, own: Tensor) -> Tensor:
        """What this process has for its weights, in the shape and placement of the parameter."""
        local = own.view(self.weights.shape)
        return local if self.piece is None else distributed_like(self.parameter, local, self.piece)

    def _own(self, tensor: Tensor) -> Tensor:
        """What this process holds of a tensor like the parameter, flat."""
        if self.piece is None:
            return tensor.reshape(-1)
        return own_part(tensor).reshape(-1) if is_divided(tensor) else self.piece.cut(tensor)

    def write(self, value: Tensor) -> None:
        """Write the values of the weights; of those that may move after their assignment.

        `counts` are those of this process then.
        """
        weights, value = self.weights, self.written(value)
        if self.moving is not None and self.moving.in_place(weights):
            self.moving.move(value, Moved(self.indices, self.counts, weights))
            return
        if self.moving is not None:
            # In place, since a CUDA graph reads this memory again.
            self.indices.copy_(self.moving.assign(value, self.indices, self.counts))
            one = self.counts.new_ones(1).expand(self.indices.shape)
            self.counts.zero_().index_add_(0, self.indices, one)
        self._put(value)

    def _put(self, value: Tensor) -> None:
        weights = self.weights
        weights.copy_(value.index_select(0, self.indices).reshape(weights.shape))

    def palette(self, value: Tensor) -> tuple[Palette, Tensor]:
        """The present clusters, and the one that each of the first ones has become."""
        values = self.written(value) + 0.0  # -0.0 becomes 0.0
        sizes = self._palette.codebook_sizes
        joined, targets = join_equal(values, self.counts, sizes, self._palette.bounds)
        return replace(joined, zeros=self.pinned is not None), targets

    def clusters(self, value: Tensor) -> Clusters:
        """The same with the cluster of each weight, of all processes."""
        found, targets = self.palette(value)
        first = found.first.repeat_interleave(self._palette.codebook_sizes).to(targets.device)
        codes = (targets - first).to(found.code_dtype).index_select(0, self.indices)
        if self.piece is not None:
            codes = self.piece.assemble(codes)
        return Clusters(found.codebook, found.counts, found.bounds, found.zeros, codes=codes)

    def _check_size(self, clusters: Palette, weights: Tensor) -> None:
        if (size := size_of(weights)) != clusters.size:
            raise ValueError(
                f"layer '{self.name}': clusters of {clusters.size} weights for {size} weights"
            )


class _Moving:
    """The trained weights of one tensor in this process, and their assignment to clusters.

    weights: (n,) float32. rd_weight: may be set at any time. kept: (n,) bool, weights that are
    exactly 0 and stay in their cluster, that of pinned zeros.
    """

    def __init__(
        self,
        weights: Tensor,
        assignment: Assignment,
        kept: Tensor | None,
    ) -> None:
        self.weights = weights
        self.rd_weight = 0.0
        self.kept = kept
        self._assignment = assignment

    def lend(self, place: Tensor) -> None:
        """Write the weights where their values are."""
        place.copy_(self.weights.view(place.shape))

    def take(self, place: Tensor) -> None:
        """Read the weights back after a step."""
        flat = place.reshape(-1)
        if flat.dtype == torch.float32:
            self.weights.copy_(flat)
        else:  # what the step has changed, so that nothing is rounded twice
            self.weights += flat.float() - self.weights.to(flat.dtype).float()

    def in_place(self, out: Tensor) -> bool:
        """Whether `move` can write values where the parameter's weights are."""
        return out.is_contiguous() and out.itemsize > 1 and out.device.type == "cpu"

    def move(self, values: Tensor, to: Moved) -> None:
        """Assign the present weights and write their values, in place."""
        self._assignment.move(self.weights, values, self.rd_weight, self.kept, to)
        torch.autograd.graph.increment_version(to.out)

    def assign(self, values: Tensor, indices: Tensor, counts: Tensor) -> Tensor:
        """The clusters (n,) of the present weights."""
        found = self._assignment(self.weights, values.float(), counts, self.rd_weight).int()
        return found if self.kept is None else torch.where(self.kept, indices, found)


def _clusters_of(state: Mapping[str, Any]) -> Clusters:
    """The clusters that codebooks were made from, in which all weights are in the first one."""
    palette = Palette(state["codebook"], state["counts"], state["bounds"], state["zeros"])
    codes = torch.zeros(palette.size, dtype=palette.code_dtype, device=palette.codebook.device)
    return Clusters(palette.codebook, palette.counts, palette.bounds, palette.zeros, codes=codes)


def _check_names(
    clusters: Mapping[str, Clusters],
    parameters: Mapping[str, nn.Parameter],
    weights: Mapping[str, Tensor] | None,
) -> None:
    if not clusters:
        raise ValueError("`clusters` must not be empty")
    if unknown := clusters.keys() - parameters.keys():
        raise ValueError(f"clusters of '{min(unknown)}', which is not a parameter of the model")
    if weights is not None and (missing := clusters.keys() - weights.keys()):
        raise ValueError(f"layer '{min(missing)}': clusters without `weights`")


def _facts(clusters: Mapping[str, Clusters]) -> str:
    """A short name of the clusters, without those of the weights."""
    return digest(
        [
            (name, found.codebook.tolist(), found.counts.tolist(), found.zeros)
            for name, found in clusters.items()
        ]
    )


def _units(
    layers: Sequence[_Layer], gradients: list[Tensor | None], ranks: Ranks | None
) -> list[Units | None]:
    """The units of each layer's gradients; None where no process has any.

    Where another process has a gradient and this one has none, it becomes 0.
    """
    if ranks is None:
        tops = [None if gradient is None else largest(gradient) for gradient in gradients]
    else:
        own = [-1.0 if gradient is None else float(largest(gradient)) for gradient in gradients]
        found = ranks.maximum(torch.tensor(own, dtype=torch.float64, device="cpu"))
        tops = [None if top < 0 else top for top in found]
    for place, (layer, top) in enumerate(zip(layers, tops, strict=True)):
        if top is not None and gradients[place] is None:
            gradients[place] = torch.zeros_like(layer.weights)
    return [
        None if top is None else Units.of(top, size_of(layer.parameter))
        for layer, top in zip(layers, tops, strict=True)
    ]


def _sums(
    layers: Sequence[_Layer],
    gradients: Sequence[Tensor | None],
    units: Sequence[Units | None],
    ranks: Ranks | None,
) -> list[Tensor]:
    """The sums of gradients over the weights of each cluster, of all processes, in units."""
    sums = []
    for layer, gradient, unit in zip(layers, gradients, units, strict=True):
        own = torch.zeros_like(layer.counts)
        if unit is not None and gradient is not None and (layer.piece is None or layer.piece.first):
            own = unit.sums(gradient.reshape(-1), layer.indices, len(own))
        sums.append(own)
    if ranks is None:
        return sums
    return list(ranks.total(torch.cat(sums)).split([len(own) for own in sums]))


def _share_counts(layers: Sequence[_Layer], ranks: Ranks) -> None:
    """Add up what each process has counted."""
    own = [
        layer.counts if layer.piece is None or layer.piece.first else torch.zeros_like(layer.counts)
        for layer in layers
    ]
    total = ranks.total(torch.cat(own)).split([len(counts) for counts in own])
    for layer, counts in zip(layers, total, strict=True):
        layer.counts.copy_(counts)
