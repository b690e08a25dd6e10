"""Ladders, and the search for the smallest network within a largest drop."""

from __future__ import annotations

import warnings

import pytest
import torch
from compressing import network, sgd, steps

from pysoftq import Compressor, Target
from pysoftq.compressor.rungs import SEARCHED, Rung, chosen, next_target, path
from pysoftq.errors import QualityWarning

SEARCH = (Target(max_drop=1.0),)


def searched(threshold: float) -> tuple[list[Rung], int]:
    """The rungs of a search in which networks below a threshold in bits lose too much."""
    done: list[Rung] = []
    while (target := next_target(SEARCH, done)) is not None:
        assert target.bits is not None
        drop = 2.0 if target.bits < threshold else 0.5
        done.append(Rung(target, 10, bits=target.bits, drop=drop))
    return done, chosen(SEARCH, done)


@pytest.mark.parametrize("threshold", [0.6, 0.7, 1.0, 1.3, 1.9, 2.0, 2.4, 3.3, 4.0])
def test_a_search_ends_near_the_threshold(threshold: float) -> None:
    done, number = searched(threshold)
    assert len(done) == SEARCHED
    assert threshold <= done[number].bits <= 1.1 * threshold


@pytest.mark.parametrize(("threshold", "least"), [(0.0, 0.1), (1e9, 12.0)])
def test_a_search_without_a_threshold_stays_in_range(threshold: float, least: float) -> None:
    done, number = searched(threshold)
    assert 0.05 <= done[-1].bits <= 12
    assert done[number].bits == (done[-1].bits if threshold == 0 else done[0].bits)


def test_what_failed_before_the_first_success_is_tried_again() -> None:
    done = [Rung(Target(bits=2.0), 10, bits=2.0, drop=3.0), Rung(Target(bits=3.0), 10, bits=3.0)]
    done[1].drop = 0.5
    again = next_target(SEARCH, done)
    assert again is not None
    assert again.bits == pytest.approx(1.8)
    done.append(Rung(again, 10, bits=1.8, drop=0.5))  # as the first one should have been
    lower = next_target(SEARCH, done)
    assert lower is not None
    assert lower.bits == pytest.approx(1.08)
    done.append(Rung(lower, 10, bits=1.0, drop=3.0))
    middle = next_target(SEARCH, done)
    assert middle is not None
    assert middle.bits == pytest.approx(1.8**0.5)


def test_a_ladder_has_each_target_once() -> None:
    targets = (Target(bits=3.0), Target(bytes=300), Target(rd_weight=0.1))
    done: list[Rung] = []
    while (target := next_target(targets, done)) is not None:
        done.append(Rung(target, 10, bits=1.0))
    assert tuple(rung.target for rung in done) == targets
    assert chosen(targets, done) == 2


SIZED = {"smallest_bytes": 1000, "weights": 8000}  # a kilobyte for each bit


@pytest.mark.parametrize(
    ("bits", "larger"),
    [
        ((8.0,), ()),
        ((2.0,), ()),
        ((1.6,), ()),
        ((1.5,), (2.0,)),
        ((1.2,), (2.0,)),
        ((0.72,), (2.0, 1.2)),
        ((8.0, 1.2), ()),  # from the coupled network to 2 bits at once, whatever is first
        ((8.0, 0.72), (1.2,)),
        ((1.2, 0.72), (2.0,)),
        ((1.2, 0.432), (2.0, 0.72)),
    ],
)
@pytest.mark.parametrize("unit", ["bits", "bytes"])
def test_a_small_target_has_others_on_the_way(
    unit: str, bits: tuple[float, ...], larger: tuple[float, ...]
) -> None:
    def target(one: float) -> Target:
        return Target(bits=one) if unit == "bits" else Target(bytes=1000 + round(1000 * one))

    def size(one: Target) -> float:
        return one.bits if one.bytes is None else (one.bytes - 1000) / 1000

    targets = [target(one) for one in bits]
    found = path(targets, spare=10, **SIZED)
    assert [one for one in found if one in targets] == targets
    assert [size(one) for one in found] == pytest.approx(sorted(bits + larger, reverse=True))
    assert len(path(targets, spare=1, **SIZED)) == len(targets) + min(len(larger), 1)
    assert path(targets, spare=0, **SIZED) == path(targets, spare=-3, **SIZED) == tuple(targets)


def test_a_size_that_cannot_be_reached_has_a_short_way() -> None:
    found = path([Target(bytes=10)], spare=100, **SIZED)
    assert 5 < len(found) < 10
    assert all(one.bytes > 1000 for one in found[:-1])


def test_what_has_no_size_has_nothing_on_the_way() -> None:
    targets = (Target(rd_weight=1.0), Target(bits=3.0))
    assert path(targets, spare=10, **SIZED) == targets


def test_networks_on_the_way_are_not_presented() -> None:
    model, seen = network(), []
    optimizer, compressor = sgd(model), Compressor(model, Target(bits=0.7), {"bits": 6})
    compressor.on_rung = lambda found: seen.append(found.rungs[-1].target)
    qualities = iter([10.0, 9.75])
    compressor.attach(optimizer, total_steps=1600, evaluate=lambda: next(qualities))
    steps(model, optimizer, 0, 1600)
    report = compressor.finalize()
    assert report.met
    assert [rung.between for rung in report.rungs] == [True, True, False]
    assert [rung.drop for rung in report.rungs] == [None, None, 0.25]
    assert seen == [Target(bits=0.7)] == [rung.target for rung in report.networks]
    assert [rung.steps for rung in report.rungs] == pytest.approx(
        [rung.steps for rung in report.rungs[:1]] * 3, abs=1
    )
    assert str(report).count("(on the way)") == 2
    for rung in report.rungs:
        assert 0.97 * rung.target.bits <= rung.bits <= rung.target.bits


@pytest.mark.parametrize("threshold", [0.9, 2.6])
def test_a_compressor_finds_the_threshold(threshold: float) -> None:
    model = network()

    def evaluate() -> float:
        """Loses 2 if the file would have fewer bits than the threshold."""
        if compressor.codebooks is None:
            return 10.0
        palettes = compressor.codebooks.palettes().values()
        bits = sum(found.entropy_bits * found.size for found in palettes)
        return 8.0 if bits < threshold * compressor.softq.size else 9.5

    compressor = Compressor(model, Target(max_drop=1.0), {"bits": 6}, coupled=0.2)
    optimizer = sgd(model)
    compressor.attach(optimizer, total_steps=240, evaluate=evaluate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)
        steps(model, optimizer, 0, 240)
    report = compressor.finalize()
    assert report.met
    assert threshold <= report.rung.bits <= 1.1 * threshold
    found = compressor.codebooks.palettes()
    for layer in compressor.softq.layers:
        values = torch.unique(layer.parameter.detach())
        assert len(values) <= found[layer.name].K


def test_where_nothing_is_good_enough_the_least_loss_is_chosen() -> None:
    model, qualities = network(), iter([10.0, 5.0, 7.0, 6.0, 5.0, 5.0, 5.0])
    optimizer, compressor = sgd(model), Compressor(model, SEARCH[0], {"bits": 6}, coupled=0.2)
    compressor.attach(optimizer, total_steps=24, evaluate=lambda: next(qualities))
    steps(model, optimizer, 0, 24)
    with pytest.warns(QualityWarning, match="a drop of 3 at .*, more than 1"):
        report = compressor.finalize()
    assert (report.chosen, report.met) == (1, False)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([Target(bits=1.0), Target(bits=2.0)], "got bits 2.0 after 1.0"),
        ([{"bytes": 900}, {"bits": 2}, {"bytes": 1100}], "got bytes 1,100 after 900"),
        ([Target(rd_weight=0.1), Target(rd_weight=0.01)], "got rd_weight 0.01 after 0.1"),
    ],
)
def test_a_ladder_that_ascends_is_refused(targets: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=f"from large to small networks, {message}"):
        Compressor(network(), targets)  # type: ignore[arg-type]


def test_an_unknown_name_in_a_target() -> None:
    with pytest.raises(ValueError, match=r"a target has bytes, .*, rd_weight, got drop, size"):
        Compressor(network(), {"drop": 1, "size": 3})  # type: ignore[arg-type]


def test_texts_of_targets_and_compressors() -> None:
    compressor = Compressor(network(), [Target(bytes=3_000), Target(bytes=2000)])
    compressor.attach(sgd(compressor.model), total_steps=20)
    assert repr(compressor) == (
        "<Compressor Target(bytes=3000), Target(bytes=2000): coupling, step 0 of 20>"
    )
