"""Summaries: the comparison with the pretrained network, and what it warns of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pysoftq.compressor.rungs import Rung
from pysoftq.compressor.target import Target
from pysoftq.coupling.report import CompressionReport, LayerReport
from pysoftq.data.tasks import CLASSIFICATION, LANGUAGE_MODELLING
from pysoftq.run.networks import NetworkRow
from pysoftq.run.reached import Reached
from pysoftq.run.summary import Summary, TrainingSpeed


def summary(
    *merits: float, task: str = CLASSIFICATION.name, refinement: str = "count", clusters: int = 9
) -> Summary:
    """Networks of these accuracies, or perplexities: pretrained, soft, in clusters, refined."""
    names = ("pretrained", "soft", "soft, 7-bit clusters", "soft, refined", "HEQ-2")
    text = task == LANGUAGE_MODELLING.name
    networks = []
    for name, merit in zip(names, (*merits, 0.1), strict=True):
        bits = None if name in ("pretrained", "soft") else 3.0
        loss = math.log(merit) if text else 0.1
        networks.append(NetworkRow(name, merit, bits, bits, bits, 1000, loss))
    layer = LayerReport("fc", 100, 0.1, 0.05, 1e-3, 12, 3.58, clusters, 3.17, 2.4, wells=9)
    report = CompressionReport((layer,), refinement=refinement)
    return Summary(tuple(networks), report, {}, TrainingSpeed(1.0, 1.0, 0.1), task)


@pytest.mark.parametrize(
    ("merits", "refinement", "stage", "advice"),
    [
        ((0.99, 0.90, 0.89, 0.88), "count", "in training", "lower `h`"),
        ((0.99, 0.98, 0.89, 0.88), "count", "in binning", "raise `h`"),
        ((0.99, 0.98, 0.97, 0.88), "count", "in refinement", "lower `n_min`"),
        ((0.99, 0.98, 0.97, 0.88), "levels", "in refinement", "lower `rd_weight`"),
    ],
)
def test_a_large_loss_names_its_stage(
    merits: tuple[float, ...], refinement: str, stage: str, advice: str
) -> None:
    (warning,) = summary(*merits, refinement=refinement).warnings
    assert warning.kind == "degradation"
    assert warning.text == (
        "test accuracy of the compressed network is 88.00 %, of the pretrained one 99.00 %: 11.00 "
        f"points lost, most of it {stage}"
    )
    assert warning.advice.startswith(advice)


def test_a_small_loss_is_no_reason_to_warn() -> None:
    assert summary(0.99, 0.98, 0.975, 0.9701).warnings == ()
    assert summary(8.0, 8.1, 8.2, 8.39, task=LANGUAGE_MODELLING.name).warnings == ()
    (warning,) = summary(8.0, 8.1, 8.2, 8.5, task=LANGUAGE_MODELLING.name).warnings
    assert "6.25 % of perplexity lost" in warning.text


def test_a_destroyed_network_is_one() -> None:
    ended = summary(8.0, 8.1, 8.2, math.nan, task=LANGUAGE_MODELLING.name)
    assert ended.warnings[0].kind == "degradation"


def test_warnings_of_layers_follow(tmp_path: Path) -> None:
    ended = summary(0.99, 0.98, 0.97, 0.88, clusters=1)
    assert [warning.kind for warning in ended.warnings] == ["degradation", "constant"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(ended.to_dict()))
    assert Summary.read(path).warnings == ended.warnings
    kinds = [warning["kind"] for warning in json.loads(path.read_text())["warnings"]]
    assert kinds == ["degradation", "constant"]


def test_a_target_determines_when_the_coupling_ends() -> None:
    ended = summary(0.99, 0.985, 0.98, 0.98)
    (layer,) = ended.layers.layers
    loose = replace(layer, clusters_before=100, clusters=80)
    ended = replace(ended, layers=replace(ended.layers, layers=(loose,)))
    assert [warning.kind for warning in ended.warnings] == ["not gathered"]
    target = Target(bytes=2_000)
    reached = Reached(target, (Rung(target, 10, bytes=1_990),), 0, 1_990, 0.1, "points")
    assert replace(ended, target=reached).warnings == ()


def test_only_compressed_networks_have_a_ratio() -> None:
    ended = summary(0.99, 0.98, 0.97, 0.96)
    assert ended.ratio(ended.compressed) is None  # of a report without the size in float32
    ended = Summary(ended.networks, ended.layers, {}, ended.training, bytes_float32=4000)
    assert ended.ratio(ended.compressed) == 0.25
    assert ended.ratio(ended["soft"]) is None
