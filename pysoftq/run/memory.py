"""The memory that a run takes, predicted before it begins."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pysoftq.data.batching import WHOLE, Share
from pysoftq.data.predictions import cross_entropy, logits_of
from pysoftq.data.tasks import Data
from pysoftq.interaction.segments import segment_count
from pysoftq.run.config import CompressConfig
from pysoftq.run.observer import Observer
from pysoftq.run.precision import autocast
from pysoftq.run.processes import Processes

LARGE = 10**6  # weights of a network from which on its memory is stated
COPIES = 3
OF_LARGEST = 3  # the output itself, its gradient and the one before that
INDEX_BYTES = 4  # of the cluster of a weight
MOVING_BYTES = 4 + INDEX_BYTES  # of a weight in float32 behind its cluster
VALUES = 2**7  # of a layer, or segment, when training begins; hardly ever more
VALUE_BYTES = 32  # of one: itself, gradient, two moments, counts
LOOK_UP_BYTES = 12  # of a weight of one layer, while its cluster is looked up
TABLE_BYTES = 16  # of one bin of a layer: counts, sums and force
_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs besides program and libraries, by what they are for.

    Attributes:
        weights, gradients, optimizer: of the training, the state of the optimizer included.
        activations: kept for the backward pass, and the largest of them (the logits of a language
            model) with its gradients; None where they are unknown.
        coupling: tables of the layers.
        networks: of a run with a target: the weights behind the clusters, the cluster of each, the
            values with their state, and the networks that a search keeps.
        clusters: copies and indices of the weights while clusters are found or trained.
        copies: of the weights on the host: pretrained, trained, and one while it is written.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    coupling: int
    networks: int
    clusters: int
    copies: int

    @property
    def peak(self) -> int:
        """In a step, or while clusters are found between two, whichever is more."""
        held = self.weights + self.gradients + self.optimizer + self.coupling + self.networks
        return held + self.copies + max(self.activations or 0, self.clusters)

    def __str__(self) -> str:
        """One line, in GB."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        listed = ", ".join(
            f"{name} {'unknown' if size is None else f'{size / 1e9:.2f}'}" for name, size in parts
        )
        return f"memory of a process: about {self.peak / 1e9:.1f} GB at most ({listed} GB)"


def predict_memory(
    model: nn.Module, data: Data, config: CompressConfig, share: Share = WHOLE
) -> Memory:
    """What a run of ``model``, whole in this process, will take in each of the processes."""
    pieces = share.of if config.shard else 1
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    coupled = [parameter for parameter in parameters if parameter.dim() > 1]
    number = sum(parameter.numel() for parameter in coupled)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    stored = sum(tensor.nbytes for tensor in model.state_dict().values())  # tied ones twice
    trained = sum(parameter.nbytes for parameter in parameters)
    state = sum(_state_bytes(parameter, config) for parameter in parameters)
    return Memory(
        weights=weights // pieces,
        gradients=trained // pieces,
        optimizer=state // pieces,
        activations=_activation_bytes(model, data, config, share),
        coupling=TABLE_BYTES * config.bins * len(coupled),
        networks=_network_bytes(coupled, config) // pieces,
        clusters=_cluster_bytes(config) * number
        + LOOK_UP_BYTES * max((weights.numel() for weights in coupled), default=0),
        copies=COPIES * stored if share.rank == 0 else 0,
    )


def available_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU, or of the machine within the limits of a container; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit, used = (path.read_text(encoding="ascii").strip() for path in _LIMITS)
        free += [int(limit) - int(used)] if limit != "max" else []
    except (OSError, ValueError):
        pass
    return min(free, default=None)


def state_memory(
    model: nn.Module, data: Data, config: CompressConfig, processes: Processes, observer: Observer
) -> None:
    """Report what a run of a large network will take, and warn if there is less."""
    number = sum(parameter.numel() for parameter in model.parameters())
    if number < LARGE or not processes.leads:
        return
    memory = predict_memory(model, data, config, processes.share)
    observer.message(f"{number:,} weights; {memory}")
    device = next(model.parameters()).device
    if lacking := shortage(memory, device, processes.local_size):
        warnings.warn(lacking, stacklevel=2)


def shortage(memory: Memory, device: torch.device, processes_here: int) -> str:
    """What to do if the memory does not suffice; empty if it does or that is unknown."""
    free = available_memory(device)
    sharing = 1 if device.type == "cuda" else processes_here
    needed = sharing * (memory.peak - memory.weights)  # the weights are there already
    if free is None or needed <= free:
        return ""
    of = "" if sharing == 1 else f" for {sharing} processes"
    return (
        f"the run needs about {needed / 1e9:.1f} GB more{of}, and {free / 1e9:.1f} GB are free: "
        "raise `accumulate`, or choose `gradient_checkpointing`, `optimizer` adamw8bit, `dtype` "
        "bfloat16, a shorter `context`, or `shard` with more processes"
    )


def _network_bytes(coupled: Sequence[Tensor], config: CompressConfig) -> int:
    """What a `Compressor` holds besides model and optimizer, once clusters have merged.

    A search keeps the coupled weights to go back to, and the best network so far: its weights,
    codes of one byte, and the other tensors, which are few.
    """
    if config.target is None:
        return 0
    total = 0
    for weights in coupled:
        segments = segment_count(weights.shape, config.granularity)
        total += VALUE_BYTES * min(VALUES * segments, weights.numel())
        total += MOVING_BYTES * weights.numel()
        if config.target.searched:
            total += weights.nbytes + (MOVING_BYTES - INDEX_BYTES + 1) * weights.numel()
    return total


def _cluster_bytes(config: CompressConfig) -> int:
    """Of one weight: codes, twice, and values; to train codebooks, what moves with each weight.

    With a target that is held already, or a second time while the network that a search has chosen
    is put back.
    """
    if config.target is None:
        return 16 if config.codebook_epochs else 6
    return MOVING_BYTES + 1 if config.target.searched else 6


def _state_bytes(parameter: Tensor, config: CompressConfig) -> int:
    if config.optimizer == "adamw8bit":
        return 2 * parameter.numel() + parameter.numel() // 32
    if config.optimizer == "adamw":
        return 2 * parameter.nbytes
    return parameter.nbytes if config.momentum else 0


def _activation_bytes(
    model: nn.Module, data: Data, config: CompressConfig, share: Share
) -> int | None:
    """What the forward pass of the largest part of a batch keeps, found without computing it."""
    examples = min(config.batch_size, len(data.train))
    examples = math.ceil(math.ceil(examples / share.of) / config.accumulate)
    inputs, targets = next(data.batches(0, 0, 1, augment=False))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    training, generator = model.training, torch.get_rng_state()
    try:
        model.train()
        for norm in norms:
            norm.eval()  # keeps as much, exchanges nothing
        return _kept_bytes(model, inputs, targets, examples, config)
    except Exception:  # noqa: BLE001 - a model may ask for values, which there are none of
        return None
    finally:
        model.train(training)
        torch.set_rng_state(generator)


def _kept_bytes(
    model: nn.Module, inputs: Tensor, targets: Tensor, examples: int, config: CompressConfig
) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state = {
        name: mode.from_tensor(value.detach()).requires_grad_(value.is_floating_point())
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch, answers = (
            mode.from_tensor(value).expand(examples, *value.shape[1:]).contiguous()
            for value in (inputs, targets)
        )
        with autocast(config, batch.device):
            logits = logits_of(torch.func.functional_call(model, state, (batch,)))
        loss = cross_entropy(logits.float(), answers)
    del loss
    weights = {value.untyped_storage()._cdata for value in state.values()}
    sizes: list[int] = [storage.nbytes() for key, storage in kept.items() if key not in weights]
    return sum(sizes) + OF_LARGEST * max(sizes, default=0)
