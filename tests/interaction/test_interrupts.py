"""Ctrl-C ends a long call of the core, and signal handlers run while it works."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from forkserver import forkserver

DELAY = 0.3  # seconds from the start of the call to the signal
MARGIN = 5.0  # CPU seconds that a call may take to end: a tenth of one is usual

START = f"""
import json, os, signal, sys, threading, time
import numpy as np
import pysoftq
from pysoftq import _core

signal.signal(signal.SIGINT, signal.default_int_handler)
pysoftq.set_num_threads(int(sys.argv[1]))
theta = np.random.default_rng(0).standard_normal(3000)
expected = pysoftq.pair_force(theta, 0.3)
sent = []

def send():
    sent.append(time.process_time())  # a busy machine is not a failure
    os.kill(os.getpid(), signal.SIGINT)

timer = threading.Timer({DELAY}, send)
"""

INTERRUPTED = """
try:
    timer.start()
    call()
    outcome = "finished"
except KeyboardInterrupt:
    outcome = "interrupted"
seconds = time.process_time() - sent[0]
again = bool((pysoftq.pair_force(theta, 0.3) == expected).all())
print(json.dumps([outcome, seconds, again]))
"""

# What each takes on one processor if it is not interrupted.
CALLS = {
    "direct energy": """
large = np.random.default_rng(1).random(1_500_000)  # minutes
call = lambda: pysoftq.pair_energy(large, 0.3, method="direct")
""",
    "direct force": """
large = np.random.default_rng(1).random(1_500_000)  # minutes
call = lambda: pysoftq.pair_force(large, 0.3, method="direct")
""",
    "sorted energy": """
large = np.random.default_rng(1).random(30_000_000)  # 6 s
call = lambda: pysoftq.pair_energy(large, 0.3)
""",
    "sorted force": """
large = np.random.default_rng(1).random(30_000_000)  # 8 s
call = lambda: pysoftq.pair_force(large, 0.3)
""",
    "density": """
large = np.random.default_rng(1).random(2_000_000)
def call():
    for _ in range(10_000):  # half a minute, of calls of a few milliseconds
        pysoftq.density(large)
""",
    "potential": """
counts = np.ones(2**24 - 1, dtype=np.int64)
call = lambda: _core.potential(counts, 1.0, 1e7, True)  # some seconds
""",
}


def run(code: str, threads: int) -> list:
    out = subprocess.run(
        [sys.executable, "-c", START + code, str(threads)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(out.stdout)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_ends_and_the_next_one_is_right(call: str, threads: int) -> None:
    outcome, seconds, again = run(call + INTERRUPTED, threads)
    assert outcome == "interrupted"
    assert seconds < MARGIN
    assert again


HANDLED = """
forces = []
signal.signal(signal.SIGINT, lambda *_: forces.append(pysoftq.pair_force(theta, 0.3)))
large = np.random.default_rng(1).random(60_000)
expected_energy = pysoftq.pair_energy(large, 0.3)
timer.start()
while not sent or not forces:
    energy = pysoftq.pair_energy(large, 0.3, method="direct")
    assert abs(energy / expected_energy - 1) < 1e-9
print(json.dumps([bool((forces[0] == expected).all()), len(forces)]))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_may_call_the_core_and_the_call_goes_on(threads: int) -> None:
    assert run(HANDLED, threads) == [True, 1]


def test_a_handler_cannot_change_the_threads_in_use() -> None:
    code = """
errors = []
def handler(*_):
    try:
        pysoftq.set_num_threads(1)
    except RuntimeError as error:
        errors.append(str(error))
signal.signal(signal.SIGINT, handler)
large = np.random.default_rng(1).random(60_000)
timer.start()
while not sent or not errors:
    pysoftq.pair_energy(large, 0.3, method="direct")
print(json.dumps(errors))
"""
    assert run(code, 2) == ["the number of threads cannot change while a call is using them"]


IN_THREAD = """
large = np.random.default_rng(1).random(60_000)
expected_energy = pysoftq.pair_energy(large, 0.3)
found = []
thread = threading.Thread(
    target=lambda: found.append(pysoftq.pair_energy(large, 0.3, method="direct"))
)
thread.start()
timer.start()
try:
    while True:
        time.sleep(10)
except KeyboardInterrupt:
    pass
thread.join()
print(json.dumps([abs(found[0] / expected_energy - 1) < 1e-9]))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_of_other_threads_go_on(threads: int) -> None:
    assert run(IN_THREAD, threads) == [True]


COUPLED = """
import torch
from torch import nn
from pysoftq import SoftQuantizer

torch.manual_seed(0)
model = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(8)))
softq = SoftQuantizer(model, fraction=1.0)

def step():
    softq.add_force_()

for parameter in model.parameters():
    parameter.grad = torch.zeros_like(parameter)
step()
forces = [parameter.grad.clone() for parameter in model.parameters()]
timer.start()
steps = 1
try:
    while True:  # each of them takes about a tenth of a second
        step()
        steps += 1
except KeyboardInterrupt:
    pass
counts = set()
for parameter, force in zip(model.parameters(), forces):
    acts = force != 0
    counts |= {round(bound.item()) for bound in (parameter.grad[acts] / force[acts]).aminmax()}
print(json.dumps([len(counts), counts <= {steps, steps + 1}]))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_adds_the_force_to_every_gradient_or_to_none(threads: int, tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    process = forkserver().Process(target=run_here, args=(START + COUPLED, threads, printed))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert json.loads(printed.read_text()) == [1, True]


def run_here(code: str, threads: int, printed: Path) -> None:
    """In a process that has loaded torch."""
    sys.argv[1:] = [str(threads)]
    with printed.open("w") as file, redirect_stdout(file):
        exec(code, {})  # noqa: S102
