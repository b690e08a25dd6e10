"""Soft quantization as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pysoftq.coupling.options import override_texts
from pysoftq.integrations._training import CoupledTraining

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "pysoftq.integrations.transformers requires transformers and accelerate: "
        "pip install 'pysoftq[transformers]'"
    ) from error


class SoftQuantizationCallback(CoupledTraining, TrainerCallback, ExportableState):
    """Couples the weights of the model that a Trainer trains.

    Its state is a part of each checkpoint's ``trainer_state.json``:
    ``train(resume_from_checkpoint=…)`` resumes with bitwise identical results. Works with DDP and
    with accelerate's FSDP2 (``fsdp_config={"fsdp_version": 2}``). With
    ``restore_callback_states_from_checkpoint``, the Trainer replaces this callback by one restored
    from the checkpoint, which holds the report.

    With `target`, a `Compressor` compresses within the steps of the training. The model computes
    with the clusters before the training ends, and so do its checkpoints from there on.
    `trainer_state.json` then has the weights, too, in 7 bytes each.

    Example::

        callback = SoftQuantizationCallback(ClusteringConfig(h=0.01, w=0.5))
        Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
        print(callback.report)
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Any,
        **others: Any,
    ) -> None:
        """Measure the layers, or resume from a checkpoint that has been loaded."""
        name = type(self).__name__
        saved = state.stateful_callbacks.get(name) if state.global_step else None
        coupling = _restored(saved["attributes"]["coupling"]) if saved else None
        self._begin(model, [optimizer], state.max_steps, coupling)
        # The Trainer keeps up what is there. It asks one process only, which this first call, in
        # all of them, gives what the others have to tell.
        state.stateful_callbacks[name] = self.state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """The share of the weights in the histogram."""
        self._follow(state.global_step, state.max_steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Write the clusters, if asked for."""
        self._end()

    def state(self) -> dict[str, Any]:
        """For the Trainer's checkpoint, as plain JSON, whose keys the Trainer sorts."""
        config = {**self.config.to_dict(), "override": override_texts(self.config.override)}
        args: dict[str, Any] = {"config": config, "finalize": self.finalize}
        found: Any = self._coupling_state()
        if self.targets:
            args["target"] = [asdict(target) for target in self.targets]
            found = found and _as_text(found)
        else:
            found = found and _plain(found)
        return {"args": args, "attributes": {"coupling": found}}


def _as_text(state: dict[str, Any]) -> str:
    """A state of plain values and tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(file.getvalue()).decode()


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a coupling, the scales of segments as lists; JSON keeps every bit of a float.

    Masks become text, eight weights a byte.
    """
    layers = [
        {key: x.tolist() if isinstance(x, Tensor) else x for key, x in layer.items()}
        for layer in state["layers"]
    ]
    zeros = {
        name: {
            "shape": list(mask.shape),
            "bits": base64.b64encode(np.packbits(mask.cpu().numpy()).tobytes()).decode(),
        }
        for name, mask in state["zeros"].items()
    }
    return {**state, "layers": layers, "zeros": zeros}


def _restored(state: dict[str, Any] | str) -> dict[str, Any]:
    """From `_plain` or `_as_text`."""
    if isinstance(state, str):
        file = io.BytesIO(base64.b64decode(state))
        found: dict[str, Any] = torch.load(file, weights_only=True)
        return found
    zeros = {}
    for name, mask in state.get("zeros", {}).items():
        packed = np.frombuffer(base64.b64decode(mask["bits"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=math.prod(mask["shape"]))
        zeros[name] = torch.from_numpy(bits).bool().reshape(mask["shape"])
    return {**state, "zeros": zeros}
