"""Memory on the CPU."""

from __future__ import annotations

import pytest
import torch

from pysoftq.interaction.host import new_memory

DTYPES = [torch.bool, torch.uint8, torch.int32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7])
def test_new_memory_is_a_tensor_on_the_cpu(dtype: torch.dtype, size: int) -> None:
    with torch.device("meta"):
        memory = new_memory(size, dtype)
    assert (memory.device.type, memory.dtype, memory.shape) == ("cpu", dtype, (size,))
    assert torch.equal(memory.fill_(1), torch.ones(size, dtype=dtype))
