"""Reports: means weighted as in Eq. 8, tables that show every row, plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from pysoftq.coupling.report import CompressionReport, LayerReport
from pysoftq.run.records import EpochMetrics
from pysoftq.run.summary import NetworkRow, Summary, TrainingSpeed


def layer(
    name: str, size: int, before: int, after: int, bits: float, note: str = ""
) -> LayerReport:
    return LayerReport(
        name,
        size,
        sigma=0.1,
        width=0.05,
        strength=0.001,
        clusters_before=before,
        bits_before=bits + 1,
        clusters=after,
        bits=bits,
        entropy_bits=bits / 2,
        note=note,
    )


@pytest.fixture
def report() -> CompressionReport:
    return CompressionReport(
        (layer("conv", 100, 16, 8, 3.0), layer("linear", 300, 4, 2, 1.0, "not refined: small"))
    )


def test_means_are_weighted_with_sizes(report: CompressionReport) -> None:
    assert report.size == 400
    assert report.mean_bits == pytest.approx((100 * 3 + 300 * 1) / 400)
    assert report.mean_bits_before == pytest.approx((100 * 4 + 300 * 2) / 400)
    assert report.entropy_bits == pytest.approx((100 * 1.5 + 300 * 0.5) / 400)


def test_no_layers_have_no_bits() -> None:
    assert CompressionReport(()).mean_bits == 0.0


def test_summary_is_plain_json_and_finds_its_rows(report: CompressionReport) -> None:
    rows = (
        NetworkRow("pretrained", 0.9, None, None, None, 4000),
        NetworkRow("HEQ-4", 0.5, 4.0, 4.0, 3.9, 700),
    )
    speed = TrainingSpeed(seconds=2.0, images_per_second=1500.0, coupling_share=0.0123)
    summary = Summary(rows, report, {"conv.bias": "one dimension"}, speed)
    content = json.loads(json.dumps(summary.to_dict()))
    assert content["networks"][1]["accuracy"] == 0.5
    assert content["networks"][0]["bits"] is None
    assert [row["ratio"] for row in content["networks"]] == [1.0, 4000 / 700]
    assert content["compression"]["mean_bits"] == pytest.approx(1.5)
    assert content["compression"]["layers"][1]["note"] == "not refined: small"
    assert content["training"]["images_per_second"] == 1500
    assert summary["HEQ-4"].bytes_on_disk == 700
    with pytest.raises(KeyError, match="HEQ-9"):
        summary["HEQ-9"]


def test_tables_show_every_row(report: CompressionReport) -> None:
    rows = (
        NetworkRow("pretrained", 0.9, None, None, None, 4000),
        NetworkRow("HEQ-4", 0.5, 4.0, 4.0, 3.9, 700, codebook_bytes=128),
    )
    speed = TrainingSpeed(seconds=2.0, images_per_second=1500.0, coupling_share=0.0123)
    summary = Summary(rows, report, {"conv.bias": "one dimension"}, speed)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table(), summary.table())
    lines = capture.get().splitlines()
    mean = next(line for line in lines if line.split()[:1] == ["mean"])
    assert mean.split() == ["mean", "400", "2.500", "1.500", "0.750"]
    heq = next(line for line in lines if "HEQ-4" in line)
    assert heq.split() == ["HEQ-4", "50.00", "%", "4.000", "4.000", "3.900", "128", "700", "5.71"]
    assert any("pretrained" in line and "32 (float)" in line for line in lines)
    remarks = summary.remarks()
    assert "linear: not refined: small" in remarks
    assert remarks[-1] == (
        "trained for 2.0 s, 1,500 images/s; the coupling took 1.23 % of the time"
    )


def test_speed_is_a_mean_over_the_time() -> None:
    first = EpochMetrics(0, 0, 0.1, -5.0, 0.9, 0.8, 0.3, 0.01, 5.0, 4.0, {}, seconds=0.0)
    epochs = [
        replace(first, seconds=seconds, samples_per_second=600 / seconds, coupling_share=share)
        for seconds, share in ((1.0, 0.01), (3.0, 0.05))
    ]
    speed = TrainingSpeed.of([first, *epochs])
    assert speed.seconds == 4
    assert speed.images_per_second == pytest.approx(1200 / 4)
    assert speed.coupling_share == pytest.approx(0.04)
    epochs[1] = replace(epochs[1], coupling_share=None)
    assert str(TrainingSpeed.of(epochs)) == "trained for 4.0 s, 300 images/s"
    assert str(TrainingSpeed.of([first])) == "trained for 0.0 s"
