"""A server that processes of the tests are forked from."""

from __future__ import annotations

import os
from multiprocessing import forkserver as server
from multiprocessing.context import ForkServerContext
from unittest import mock

# A new Python takes seconds to import them. There is one server, so all tests name the same ones.
MODULES = [
    "pysoftq.coupling",
    "pysoftq.sweep.local",
    "torch._dynamo",
    "torch.distributed.fsdp",
]
# Its processes have the variables of the session, not those of the test that is the first to ask.
VARIABLES = dict(os.environ)


def forkserver() -> ForkServerContext:
    """Starts processes that have imported the modules above."""
    context = ForkServerContext()
    context.set_forkserver_preload(MODULES)
    with mock.patch.dict(os.environ, VARIABLES, clear=True):
        server.ensure_running()
    return context
