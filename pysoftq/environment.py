"""What this installation consists of: for reports of errors, and to see what computes."""

from __future__ import annotations

import platform
from typing import Any, Literal

import numpy as np

from pysoftq import __version__, _core
from pysoftq.interaction.backends import has_cuda
from pysoftq.interaction.threads import get_num_threads


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show versions, how the core was built, what it runs on, and the CUDA kernels and devices.

    Args:
        mode: "stdout" prints YAML and returns None, "dicts" returns the same as nested dicts.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    import torch

    build = _core.build_config()
    kernels = build.pop("CUDA")
    devices = [
        torch.cuda.get_device_name(index)
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    config = {
        "pysoftq": __version__,
        "build": build,
        "CPU": {
            "SIMD": _core.simd_level(),
            "SIMD available": _core.simd_levels(),
            "threads": get_num_threads(),
        },
        "CUDA": {
            "kernels": kernels,
            "in use": bool(devices) and has_cuda(),
            "devices": devices,
        },
        "with": {
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "torch": str(torch.__version__),
            "torch's CUDA": torch.version.cuda or "none",
        },
    }
    if mode == "dicts":
        return config
    import yaml

    print(yaml.safe_dump(config, sort_keys=False), end="")  # noqa: T201 - it is asked to print
    return None
