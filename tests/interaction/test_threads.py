from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import pysoftq
from pysoftq import _core


def test_set_and_get():
    before = pysoftq.get_num_threads()
    try:
        pysoftq.set_num_threads(3)
        assert pysoftq.get_num_threads() == 3
        with pytest.raises(ValueError, match="at least 1 and at most 4096, got 0"):
            pysoftq.set_num_threads(0)
        assert pysoftq.get_num_threads() == 3
        with pytest.raises(ValueError, match="at most 4096, got 5000"):
            pysoftq.set_num_threads(5000)
    finally:
        pysoftq.set_num_threads(before)


def test_goes_on_where_the_system_gives_no_more_threads():
    code = """
import resource
import numpy as np, pysoftq
theta = np.random.default_rng(0).standard_normal(100_000)
pysoftq.set_num_threads(2)
expected = pysoftq.pair_energy(theta, 0.5)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
pysoftq.set_num_threads(4096)
assert pysoftq.pair_energy(theta, 0.5) == expected
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYSOFTQ_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "none"}, len(os.sched_getaffinity(0))),
        ({}, len(os.sched_getaffinity(0))),
    ],
)
def test_environment(environment, expected):
    names = ("PYSOFTQ_NUM_THREADS", "OMP_NUM_THREADS")
    clean = {key: value for key, value in os.environ.items() if key not in names}
    out = subprocess.run(
        [sys.executable, "-c", "import pysoftq; print(pysoftq.get_num_threads())"],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(out.stdout) == expected


def test_calls_from_several_python_threads():
    theta = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    expected = pysoftq.pair_energy(theta, 0.5)
    seen: list[float] = []
    callers = [
        threading.Thread(target=lambda: seen.append(pysoftq.pair_energy(theta, 0.5)))
        for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert seen == [expected] * 6


def test_works_after_a_fork():
    code = """
import os, sys, warnings
import numpy as np, pysoftq
warnings.simplefilter("ignore")
pysoftq.set_num_threads(2)
theta = np.random.default_rng(0).standard_normal(100_000)
expected = pysoftq.pair_energy(theta, 0.5)
child = os.fork()
if child == 0:
    os._exit(0 if pysoftq.pair_energy(theta, 0.5) == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_simd_level_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no SIMD level 'sse9' here: use one of .*baseline"):
        _core.set_simd_level("sse9")


def test_simd_level_from_the_environment():
    out = subprocess.run(
        [sys.executable, "-c", "from pysoftq import _core; print(_core.simd_level())"],
        env={**os.environ, "PYSOFTQ_SIMD": "baseline"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "baseline"
