"""bfloat16 is used where the device has it, and a run says where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Recorder, tiny_digits
from torch import nn

from pysoftq.run.config import make_config
from pysoftq.run.driver import compress
from pysoftq.run.precision import autocast, has_bfloat16, precision_remarks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that only emulates bfloat16."""
    monkeypatch.setattr("pysoftq.run.precision.has_bfloat16", lambda device: False)


def dtype_of_forward(amp: str) -> torch.dtype:
    with autocast(make_config({"amp": amp}), CPU):
        result: torch.Tensor = nn.Linear(3, 2)(torch.ones(1, 3))
    return result.dtype


@pytest.mark.usefixtures("bfloat16")
def test_the_forward_pass_is_in_bfloat16_where_the_device_has_it() -> None:
    assert dtype_of_forward("bf16") == torch.bfloat16
    assert dtype_of_forward("off") == torch.float32
    assert precision_remarks(make_config({"amp": "bf16", "dtype": "bfloat16"}), CPU) == []


@pytest.mark.usefixtures("emulating")
def test_a_run_on_a_device_without_it_is_in_float32_and_says_so(tmp_path: Path) -> None:
    assert dtype_of_forward("bf16") == torch.float32
    told = "`amp` is bf16, but this cpu has no bfloat16: float32 instead"
    options = {"model": "digits-resnet-small", "epochs": 1, "pretrain_epochs": 1}
    options |= {"codebook_epochs": 1, "batch_size": 32}
    losses = []
    for amp in ("bf16", "off"):
        observer = Recorder()
        config = make_config({**options, "amp": amp, "recipe": "paper"})
        compress(config, tmp_path / amp, observer, data=tiny_digits())
        assert (told in observer.messages) == (amp == "bf16")
        losses.append([epoch["task_loss"] for epoch in observer.epochs])
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("emulating")
def test_weights_in_bfloat16_stay_so_and_the_run_says_that_it_is_slow() -> None:
    (remark,) = precision_remarks(make_config({"dataset": "pydoc", "dtype": "bfloat16"}), CPU)
    assert "`dtype` is bfloat16, which this cpu emulates" in remark


def test_the_cpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16(CPU)
    monkeypatch.undo()
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not has_bfloat16(CPU)


def test_emulation_on_a_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs before Ampere emulate it."""
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bfloat16(CUDA)
    assert asked == [False]
