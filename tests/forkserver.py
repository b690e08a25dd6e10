"""A server that processes of the tests are forked from."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

# A new Python takes seconds to import them. There is one server, so all tests name the same modules.
MODULES = [
    "pysoftq.coupling",
    "pysoftq.sweep.local",
    "torch._dynamo",
    "torch.distributed.fsdp",
]


def forkserver() -> ForkServerContext:
    """Starts processes that have imported the modules above."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context
