"""Rows of a sweep, as the ledger gives them, for tests of what is made of them."""

from __future__ import annotations

from pysoftq.sweep.grid import Run
from pysoftq.sweep.ledger import Row
from pysoftq.sweep.result import NetworkResult, RunResult

HEQ = {5: 1.0, 4: 5.0, 3: 30.0, 2: 60.0}  # degradation by bits


def network(degradation: float, bits: float) -> NetworkResult:
    return NetworkResult(float(degradation), float(bits), entropy_bits=bits / 2, bytes=1000)


def row(h: float, w: float, seed: int, degradation: float, bits: float) -> Row:
    result = RunResult(
        refined=network(degradation, bits),
        before=network(degradation / 2, bits + 0.5),
        heq={bits: network(lost, bits) for bits, lost in HEQ.items()},
        pretrained=0.99,
        seconds=1.0,
    )
    return Row(Run(h, w, seed), result.to_dict())
