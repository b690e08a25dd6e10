"""Scripts of the tests in several processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys

from paths import TESTS


def launch(world: int, script: str, *arguments: object, **variables: str) -> None:
    """Run a script of this folder in processes of one thread; fails as it does."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        **variables,
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine calls itself
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    result = subprocess.run(
        [
            *(sys.executable, "-m", *torchrun, f"--nproc-per-node={world}"),
            *(str(TESTS / script), *map(str, arguments)),
        ],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr
