"""A server that processes of the tests are forked from."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext

# A new Python takes seconds to import them. There is one server, so all tests name the same ones.
MODULES = [
    "pysoftq.coupling",
    "pysoftq.sweep.local",
    "torch._dynamo",
    "torch.distributed.fsdp",
]


def forkserver() -> ForkServerContext:
    """Starts processes that have imported the modules above."""
    context = ForkServerContext()
    context.set_forkserver_preload(MODULES)
    return context
