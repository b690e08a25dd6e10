"""Arithmetic in bfloat16, where the device has it."""

from __future__ import annotations

import torch

from pysoftq.run.config import CompressConfig


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; others emulate it, many times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        onednn = torch.backends.mkldnn.is_available()
        return onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def autocast(config: CompressConfig, device: torch.device) -> torch.autocast:
    """What the forward pass of a training runs in: bfloat16 only where the device has it."""
    enabled = config.amp == "bf16" and has_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def precision_remarks(config: CompressConfig, device: torch.device) -> list[str]:
    """What is to be said about options that ask for bfloat16 on a device without it."""
    if has_bfloat16(device):
        return []
    remarks = []
    if config.amp == "bf16":
        remarks.append(f"`amp` is bf16, but this {device.type} has no bfloat16: float32 instead")
    if config.dtype == "bfloat16":
        remarks.append(
            f"`dtype` is bfloat16, which this {device.type} emulates: many times slower than "
            "float32"
        )
    return remarks
