"""Pieces of a layer, coupled in phases: equal to the layer in one piece, bit for bit.

Threads take the place of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from devices import Device
from torch import Tensor, nn

from pysoftq.interaction.backends import core
from pysoftq.interaction.layers import CoupledLayer, Scales
from pysoftq.interaction.pieces import Extremes, Piece
from pysoftq.interaction.segment_table import SegmentTable
from pysoftq.interaction.segments import segment_bounds
from pysoftq.interaction.weights import HostWeights

BINS = 2**9

pytestmark = pytest.mark.devices("core", "plain", "cuda emulated", "plain on cuda", "cuda")


class Meeting:
    """Threads that exchange what they have."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=20)
        self._things: list[Any] = [None] * size
        self._here = threading.local()
        self.size = size

    def collected(self, thing: Any) -> list[Any]:
        self._things[self._here.rank] = thing
        self._barrier.wait()
        found = list(self._things)
        self._barrier.wait()
        return found

    def maximum(self, values: Tensor) -> Tensor:
        return torch.stack(self.collected(values)).amax(0)

    def total(self, values: Tensor) -> Tensor:
        return torch.stack(self.collected(values)).sum(0, dtype=values.dtype)

    def gathered(self, rows: Tensor) -> Tensor:
        return torch.cat(self.collected(rows))

    def compare(self, facts: Mapping[str, Any]) -> None:
        assert len({repr(own) for own in self.collected(facts)}) == 1

    def run(self, pieces: Sequence[Piece], body: Callable[[Piece], Any]) -> list[Any]:
        """What body(piece) returns in the thread of each piece."""
        results: list[Any] = [None] * self.size

        def call(rank: int) -> None:
            self._here.rank = rank
            try:
                results[rank] = body(pieces[rank])
            except BaseException as error:  # noqa: BLE001 - raised again below
                results[rank] = error
                self._barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return results


def cuts(length: int, parts: int, seed: int) -> list[int]:
    """Where intervals begin and end; some of them may be empty."""
    inner = np.random.default_rng(seed).integers(0, length + 1, parts - 1)
    return [0, *sorted(inner.tolist()), length]


def divide(shape: tuple[int, int], rows: int, columns: int, seed: int) -> list[Piece]:
    """A grid of pieces."""
    height, width = shape
    edges, own = cuts(height, rows, seed), cuts(width, columns, seed + 1)
    meeting = Meeting(rows * columns)
    pieces = []
    for top, bottom in pairwise(edges):
        for left, right in pairwise(own):
            block = (top, bottom - top, left, right - left, width)
            pieces.append(Piece(*block, height * width, columns == 1, True, meeting))
    return pieces


def make_weights(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    theta = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "tails":
        theta = theta**5
    if kind == "narrow":
        theta = 1 + theta.clamp(-3, 3) * 1e-6
    return theta.to(dtype)


def layer_of(
    theta: Tensor, granularity: str, piece: Piece | None = None, device: str = "cpu"
) -> CoupledLayer:
    """The layer of the whole weights `theta`, of which this process has a piece."""
    whole = CoupledLayer.measure("w", nn.Parameter(theta), Scales(0.7, 0.4, 0.5), granularity)
    assert whole is not None
    if piece is None:
        return whole
    return replace(whole, parameter=nn.Parameter(piece.cut(theta).to(device)), piece=piece)


def step(coupling: Any, ranks: Meeting, own: tuple[Tensor, Tensor], fraction: float) -> Extremes:
    thetas, gradients = [own[0]], [own[1]]
    none = own[0].new_zeros(0, dtype=torch.float64)
    extremes, _ = coupling.extremes(thetas, gradients).maximum(ranks, none)
    assert not coupling.refuses(extremes)
    counts = ranks.total(coupling.counts(thetas, extremes, fraction, 5, 9))
    coupling.add_force(thetas, gradients, 1.5, fraction, 5, 9)
    coupling.add_shared_force(thetas, gradients, extremes, counts, 1.5, fraction)
    return extremes


CASES = [
    ((40, 70), 1, 3, "layer", torch.float32, "plain"),
    ((300, 400), 3, 2, "layer", torch.float32, "tails"),
    ((513, 1100), 2, 2, "layer", torch.float32, "plain"),
    ((3000, 300), 2, 1, "layer", torch.float32, "plain"),
    ((7, 5), 6, 1, "layer", torch.float64, "plain"),
    ((64, 33), 2, 3, "layer", torch.bfloat16, "tails"),
    ((64, 33), 3, 1, "layer", torch.float16, "plain"),
    ((50, 40), 2, 2, "layer", torch.float64, "narrow"),
    ((12, 90), 3, 1, "channel", torch.float32, "plain"),
    ((12, 90), 1, 3, "channel", torch.float32, "tails"),
    ((12, 90), 2, 2, "group:16", torch.bfloat16, "plain"),
    ((9, 64), 4, 1, "group:10", torch.float32, "plain"),
]


@pytest.mark.parametrize("fraction", [1.0, 0.37])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_force_is_that_of_the_whole_layer(device: Device, case: Any, fraction: float) -> None:
    shape, rows, columns, granularity, dtype, kind = case
    emulated = device.kind == "cuda emulated"
    if emulated and (shape[0] * shape[1] > 200_000 or (fraction == 1 and columns > 1)):
        pytest.skip("the emulation takes its time")
    theta = make_weights(shape, dtype, kind)
    before = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    transforms = granularity == "layer" and not (emulated and shape[0] > 10)
    methods = [(False, False), (True, False)] if transforms else [(False, False)]
    # Of the log potential, half of the cases.
    for fft, log in methods + [(fft, True) for fft, _ in methods if fraction < 1]:
        whole = before.clone()
        layer = layer_of(theta, granularity)
        alone = core.Coupling([layer], [3], BINS, fft, log)
        alone.add_force([theta], [whole], 1.5, fraction, 5, 9)
        assert not torch.equal(whole, before)
        pieces = divide(shape, rows, columns, sum(shape))
        meeting = pieces[0].ranks
        assert isinstance(meeting, Meeting)

        def couple(piece: Piece, fft: bool = fft, log: bool = log) -> Tensor:
            own = layer_of(theta, granularity, piece, device.name)
            gradient = device.put(piece.cut(before))
            coupling = device.backend.Coupling([own], [3], BINS, fft, log)
            for _ in range(1 + (shape[0] < 20)):  # nothing is left behind of a step
                gradient.copy_(piece.cut(before))
                step(coupling, piece.ranks, (own.parameter.detach(), gradient), fraction)
            coupling.check()
            return gradient.cpu()

        for piece, found in zip(pieces, meeting.run(pieces, couple), strict=True):
            if fft and device.backend is not core:  # rounded to the other side now and then
                torch.testing.assert_close(found, piece.cut(whole), rtol=2e-2, atol=1e-2)
            else:
                assert torch.equal(found, piece.cut(whole)), (fft, log)


@pytest.mark.parametrize("bins", [BINS, 2**17])
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_energy_is_that_of_the_whole_layer(
    device: Device, case: Any, log: bool, bins: int
) -> None:
    shape, rows, columns, granularity, dtype, kind = case
    large = device.kind == "cuda emulated" and shape[0] * shape[1] > 100_000
    if (device.backend is not core and bins != BINS) or large:
        pytest.skip("torch operations and the emulation take their time")
    theta = make_weights(shape, dtype, kind)
    whole = core.Coupling([layer_of(theta, granularity)], [0], bins, False, log).energies([theta])
    pieces = divide(shape, rows, columns, sum(shape))
    meeting = pieces[0].ranks
    assert isinstance(meeting, Meeting)

    def measure(piece: Piece) -> list[float]:
        own = layer_of(theta, granularity, piece, device.name)
        thetas = [own.parameter.detach()]
        coupling = device.backend.Coupling([own], [0], bins, False, log)
        none = device.put(torch.zeros(0).double())
        extremes, _ = coupling.extremes(thetas, thetas).maximum(meeting, none)
        counts = meeting.total(coupling.counts(thetas, extremes, 1.0, 0, 0))
        energies, shared = coupling.row_energies(thetas, extremes, counts)
        return coupling.row_sums(meeting.total(energies) + shared)

    for found in meeting.run(pieces, measure):
        if device.backend is core:
            assert found == whole
        else:  # those of many weights are added up in another order
            assert found == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scales_and_bins_are_those_of_the_whole_layer(case: Any) -> None:
    shape, rows, columns, granularity, dtype, kind = case
    theta = make_weights(shape, dtype, kind)
    bounds = segment_bounds(shape, granularity)
    whole = HostWeights(theta, bounds)
    spreads, bins = whole.spreads(), whole.occupied_bins(2**5, signs=True)
    pieces = divide(shape, rows, columns, sum(shape))
    meeting = pieces[0].ranks
    assert isinstance(meeting, Meeting)

    def measure(piece: Piece) -> Any:
        weights = HostWeights(piece.cut(theta), bounds, piece)
        ranges = weights.ranges()
        return ranges, weights.spreads(), weights.occupied_bins(2**5, signs=True)

    for ranges, found, occupied in meeting.run(pieces, measure):
        for values, expected in zip(ranges, whole.ranges(), strict=True):
            assert torch.equal(values, expected)
        assert torch.equal(found, spreads)
        for values, expected in zip(occupied, bins, strict=True):
            assert (values == expected).all()


def test_unfit_weights_of_one_piece_are_refused_by_all_alike() -> None:
    shape = (20, 30)
    theta = make_weights(shape, torch.float32, "plain")
    layer = layer_of(theta, "layer")
    broken = theta.clone()
    broken[3, 4], broken[19, 29] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="layer 'w': 2 of 600") as expected:
        core.Coupling([layer], [0], BINS, False).add_force([broken], [broken], 1.0, 1.0, 0, 0)
    pieces = divide(shape, 2, 2, 0)
    meeting = pieces[0].ranks
    assert isinstance(meeting, Meeting)

    def refuse(piece: Piece) -> str:
        own = layer_of(theta, "layer", piece)
        thetas = [piece.cut(broken)]
        coupling = core.Coupling([own], [0], BINS, False)
        none = torch.zeros(0, dtype=torch.float64)
        extremes, _ = coupling.extremes(thetas, thetas).maximum(meeting, none)
        assert coupling.refuses(extremes)
        parts = meeting.collected(coupling.unfit(thetas, thetas))
        return coupling.explain(extremes, [row for part in parts for row in part])

    assert set(meeting.run(pieces, refuse)) == {str(expected.value)}


def test_devices_that_are_not_waited_for_report_unfit_weights_later(device: Device) -> None:
    if device.backend is core:
        pytest.skip("it is waited for")
    shape = (20, 30)
    theta = make_weights(shape, torch.float32, "plain")
    broken = theta.clone()
    broken[3, 4] = torch.nan
    for granularity, rows, columns in (("layer", 2, 2), ("channel", 2, 1), ("channel", 1, 2)):
        pieces = divide(shape, rows, columns, 4)
        meeting = pieces[0].ranks
        assert isinstance(meeting, Meeting)

        def refuse(piece: Piece, granularity: str = granularity) -> None:
            own = layer_of(theta, granularity, piece, device.name)
            coupling = device.backend.Coupling([own], [0], BINS, False)
            gradient = device.put(torch.ones(piece.rows * piece.columns))
            step(coupling, piece.ranks, (device.put(piece.cut(broken)), gradient), 0.5)
            assert (gradient == 1).all()
            with pytest.raises(ValueError, match="weights are not finite"):
                coupling.check()
            step(coupling, piece.ranks, (device.put(piece.cut(theta)), gradient), 0.5)
            coupling.check()
            assert not gradient.numel() or (gradient != 1).any()

        meeting.run(pieces, refuse)


def test_a_range_wider_than_the_dtype_is_refused_by_all_alike() -> None:
    theta = torch.tensor([[-3e38, 1.0], [2.0, 3e38]])
    layer = replace(layer_of(torch.randn(2, 2), "layer"), parameter=nn.Parameter(theta))
    with pytest.raises(ValueError, match="wider than float32") as expected:
        core.Coupling([layer], [0], BINS, False).add_force([theta], [theta], 1.0, 1.0, 0, 0)
    table = SegmentTable.of([replace(layer, piece=divide((2, 2), 2, 1, 0)[0])], BINS)
    extremes = Extremes(
        torch.tensor([[0.0, 1.0]], dtype=torch.float64),
        torch.tensor([[3e38, 3e38]], dtype=torch.float32).double(),
    )
    assert table.refuses(extremes)
    assert table.explain(table.reasons(extremes, [])) == str(expected.value)


def test_places_and_positions_of_a_piece() -> None:
    shape = (11, 13)
    whole = torch.arange(143)
    for piece in divide(shape, 3, 3, 3):
        own = piece.cut(whole)
        assert torch.equal(piece.position(torch.arange(len(own))), own)
        bounds = torch.arange(144)
        expected = torch.tensor([int((own < bound).sum()) for bound in bounds])
        assert torch.equal(piece.place(bounds), expected)


def test_pieces_make_up_the_whole() -> None:
    whole = torch.arange(143, dtype=torch.int16)
    pieces = divide((11, 13), 2, 3, 5)
    meeting = pieces[0].ranks
    assert isinstance(meeting, Meeting)
    for found in meeting.run(pieces, lambda piece: piece.assemble(piece.cut(whole))):
        assert torch.equal(found, whole)


def test_weights_that_are_not_those_of_the_piece_are_refused() -> None:
    piece = divide((11, 13), 1, 1, 0)[0]
    with pytest.raises(ValueError, match="a piece of 143 of 143 weights now has 3 of 143"):
        HostWeights(torch.zeros(3), None, piece)
