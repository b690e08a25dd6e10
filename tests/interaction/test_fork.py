"""A child process has threads of its own, whatever its parent's were doing."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, sys, threading, time, warnings
import numpy as np
import pysoftq

warnings.simplefilter("ignore")
pysoftq.set_num_threads(2)
theta = np.random.default_rng(0).standard_normal(100_000)
expected = pysoftq.pair_energy(theta, 0.5)
busy = threading.Thread(target=lambda: pysoftq.pair_energy(theta, 0.5, method="direct"))
busy.start()
time.sleep(0.2)
child = os.fork()
if child == 0:
    pysoftq.set_num_threads(3)  # would wait for ever for a mutex that nobody holds any more
    os._exit(0 if pysoftq.pair_energy(theta, 0.5) == expected else 1)
was_busy = busy.is_alive()
busy.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not was_busy)
"""


def test_a_fork_while_another_thread_uses_the_pool():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
