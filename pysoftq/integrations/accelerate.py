"""Soft quantization in a loop of your own with Hugging Face's accelerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.evaluation import Evaluate
from pysoftq.compressor.target import Target
from pysoftq.coupling import lifecycle
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.integrations._training import refuse_sharded

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError(
        "pysoftq.integrations.accelerate requires accelerate: pip install 'pysoftq[accelerate]'"
    ) from error


def prepare(
    accelerator: Accelerator, model: nn.Module, config: ClusteringConfig, *optimizers: Any
) -> SoftQuantizer:
    """Couple the weights of a model at each step of its optimizers, all prepared by accelerate.

    The state of the coupling is saved and loaded by ``accelerator.save_state`` and ``load_state``;
    a loop that resumes from there is bitwise identical. Works with gradient accumulation, mixed
    precision, DDP and FSDP (``FullyShardedDataParallelPlugin``, version 2; version 1 with
    ``use_orig_params``).

    Example::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        softq = prepare(accelerator, model, config, optimizer)
        for epoch in range(epochs):
            softq.fraction = config.fraction(epoch, epochs)
            …  # your loop, unchanged
        print(softq.finalize(**config.cluster_options))

    Raises:
        ValueError: as `pysoftq.prepare` and `SoftQuantizer.attach`.
        TypeError: an optimizer is none of torch, as with DeepSpeed.
    """
    softq = lifecycle.prepare(model, config)
    softq.attach(*optimizers)
    accelerator.register_for_checkpointing(_Checkpointed(softq))
    return softq


def prepare_compressor(  # noqa: PLR0913 - those of Compressor and of its attach
    accelerator: Accelerator,
    model: nn.Module,
    target: Target | Sequence[Target],
    optimizer: Any,
    *,
    total_steps: int,
    evaluate: Evaluate | None = None,
    config: ClusteringConfig | Mapping[str, Any] | None = None,
) -> Compressor:
    """Compress a model to a target within the steps of its optimizer, both prepared by accelerate.

    The state of the compression is saved and loaded by ``accelerator.save_state`` and
    ``load_state``; a loop that resumes from there is bitwise identical. Weights that are sharded
    between processes are refused.

    Example::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        steps = epochs * math.ceil(len(loader) / accelerator.gradient_accumulation_steps)
        target = Target(bytes=60_000)
        compressor = prepare_compressor(accelerator, model, target, optimizer, total_steps=steps)
        …  # your loop, unchanged
        print(compressor.finalize())

    Raises:
        ValueError: as `Compressor` and its `attach`; weights are sharded.
        TypeError: as `Compressor.attach`.
    """
    refuse_sharded(model)
    compressor = Compressor(model, target, config)
    compressor.attach(optimizer, total_steps=total_steps, evaluate=evaluate)
    accelerator.register_for_checkpointing(_Compression(compressor, evaluate))
    return compressor


class _Compression:
    """The compression as accelerate saves and loads it: attached, or not, as before."""

    def __init__(self, compressor: Compressor, evaluate: Evaluate | None) -> None:
        self._compressor = compressor
        self._evaluate = evaluate

    def state_dict(self) -> dict[str, Any]:
        return self._compressor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizer = self._compressor.optimizer
        steps = self._compressor.report().total_steps
        self._compressor.detach()
        try:
            self._compressor.load_state_dict(state)
        finally:
            if optimizer is not None:
                self._compressor.attach(optimizer, total_steps=steps, evaluate=self._evaluate)


class _Checkpointed:
    """The coupling as accelerate saves and loads it: attached, or not, as before."""

    def __init__(self, softq: SoftQuantizer) -> None:
        self._softq = softq

    def state_dict(self) -> dict[str, Any]:
        return self._softq.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizers = self._softq.optimizers
        self._softq.detach()
        try:
            self._softq.load_state_dict(state)
        finally:
            if optimizers:
                self._softq.attach(*optimizers)
