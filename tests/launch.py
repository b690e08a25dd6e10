"""Functions of the tests in several processes, as torchrun starts them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from forkserver import forkserver
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(world: int, function: Callable[..., None], *arguments: object, **variables: str) -> None:
    """Run a function in processes with the environment of torchrun; fails as it does.

    torchrun's agent starts them from the server of the tests: a script of its own would load torch
    in three new Pythons. It works in a thread, where it leaves the handlers of signals alone.
    """
    forkserver()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        start_method="forkserver",
        max_restarts=0,
    )
    agent = elastic_launch(config, _call)
    with (
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
        ThreadPoolExecutor(1) as thread,
    ):
        warnings.simplefilter("ignore")
        thread.submit(agent, variables, function, *arguments).result()


def _call(variables: dict[str, str], function: Callable[..., None], *arguments: object) -> None:
    os.environ.update(variables)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine calls itself
    function(*arguments)
