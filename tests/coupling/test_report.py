"""Reports: means weighted as in Eq. 8, tables that show every row, plain JSON."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from pysoftq.clusters.binning import identify
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CONSTANT, CompressionReport, LayerReport
from pysoftq.errors import QualityWarning
from pysoftq.run.networks import NetworkRow
from pysoftq.run.records import EpochMetrics
from pysoftq.run.summary import Summary, TrainingSpeed


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
        NetworkRow("soft, refined", 0.5, 4.0, 4.0, 3.9, 700),
    )
    speed = TrainingSpeed(seconds=2.0, images_per_second=1500.0, coupling_share=0.0123)
    excluded = {"conv.bias": "one dimension"}
    summary = Summary(rows, report, excluded, speed, bytes_float32=4000)
    content = json.loads(json.dumps(summary.to_dict()))
    assert content["networks"][1]["accuracy"] == 0.5
    assert content["networks"][0]["bits"] is None
    assert [row["ratio"] for row in content["networks"]] == [None, 700 / 4000]
    assert content["compression"]["mean_bits"] == pytest.approx(1.5)
    assert content["compression"]["layers"][1]["note"] == "not refined: small"
    assert content["training"]["images_per_second"] == 1500
    assert summary["soft, refined"].bytes_on_disk == 700
    with pytest.raises(KeyError, match="HEQ-9"):
        summary["HEQ-9"]


def test_tables_show_every_row(report: CompressionReport) -> None:
    rows = (
        NetworkRow("pretrained", 0.9, None, None, None, 4000),
        NetworkRow("soft, refined", 0.5, 4.0, 4.0, 3.9, 700, codebook_bytes=128),
    )
    speed = TrainingSpeed(seconds=2.0, images_per_second=1500.0, coupling_share=0.0123)
    excluded = {"conv.bias": "one dimension"}
    summary = Summary(rows, report, excluded, speed, bytes_float32=4000)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table(), summary.table())
    lines = capture.get().splitlines()
    mean = next(line for line in lines if line.split()[:1] == ["mean"])
    assert mean.split() == ["mean", "400", "2.500", "1.500", "0.750"]
    refined = next(line for line in lines if "soft, refined" in line)
    assert refined.split() == [
        "soft,",
        "refined",
        "50.00",
        "%",
        "4.000",
        "4.000",
        "3.900",
        "128",
        "700",
        "0.175",
    ]
    assert any("pretrained" in line and "32 (float)" in line for line in lines)
    remarks = summary.remarks()
    assert "linear: not refined: small" in remarks
    assert remarks[-1] == (
        "trained for 2.0 s, 1,500 images/s; the coupling took 1.23 % of the time"
    )


def test_speed_is_a_mean_over_the_time() -> None:
    first = EpochMetrics(0, 0, 0.1, -5.0, 0.9, 0.8, 0.7, 0.3, 0.01, 5.0, 4.0, {}, seconds=0.0)
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


def test_constant_layers_are_noted_and_reported(report: CompressionReport) -> None:
    names = [f"layer{number}" for number in range(7)]
    rows = [replace(report.layers[0], name=name, clusters=1, bits=0.0) for name in names]
    collapsed = replace(rows[0], name="conv1", clusters_before=1)
    found = CompressionReport((*report.layers, *rows, collapsed)).warnings
    assert [warning.kind for warning in found] == ["constant", "constant"]
    assert found[0].layers == ("conv1",)
    assert str(found[0]) == (
        "1 of 10 layers has a single value left after training: conv1; lower `h` or `w`, or leave "
        "such layers out with `exclude`"
    )
    assert found[1].layers == tuple(names)
    assert found[1].text == (
        "7 of 10 layers have a single value left after refinement: layer0, layer1, layer2, layer3, "
        "layer4 and 2 more"
    )
    assert "lower `n_min`" in found[1].advice
    levels = CompressionReport(tuple(rows), refinement="levels").warnings
    assert "lower `rd_weight`" in levels[0].advice


def test_a_note_follows_the_clusters(report: CompressionReport) -> None:
    one, two = (identify(torch.tensor(values)) for values in ([0.5, 0.5], [0.0, 0.0, 1.0]))
    constant = report.layers[1].with_clusters(one)
    assert constant.constant
    assert constant.note == f"not refined: small; {CONSTANT}"
    assert constant.with_clusters(two).note == "not refined: small"


@pytest.mark.parametrize(
    ("before", "after", "wells", "gathered"),
    [
        (13, 12, 16, True),  # sharp clusters: each occupies a bin
        (100, 80, 16, False),
        (100, 40, 16, True),  # merged into fewer than half
        (100, 80, None, True),  # a report of an earlier version does not tell
    ],
)
def test_layers_that_have_not_gathered(
    report: CompressionReport, before: int, after: int, wells: int | None, gathered: bool
) -> None:
    row = replace(report.layers[0], clusters_before=before, clusters=after, wells=wells)
    assert row.gathered == gathered
    found = CompressionReport((row, report.layers[1])).warnings
    assert [warning.layers for warning in found] == ([] if gathered else [("conv",)])
    for warning in found:
        assert str(warning) == (
            "1 of 2 layers has not gathered in clusters (more than half of the occupied bins are "
            "left): conv; raise `h` of these layers (`override`) or train for more epochs"
        )
        assert "\nwarning: 1 of 1 layers has not gathered" in str(CompressionReport((row,)))


def test_wells_are_counted_in_each_segment() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 4, bias=False)
    for granularity, parts in (("layer", model.weight[None]), ("channel", model.weight)):
        softq = SoftQuantizer(model, w=0.5, granularity=granularity)
        row = softq.finalize(bits=7, n_min=0, refinement="count").layers[0]
        spans = sum(int((part.max() - part.min()) / row.width) + 1 for part in parts)
        assert abs(row.wells - spans) <= 1
        assert not row.gathered


def test_finalize_warns_of_a_constant_layer() -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.ReLU(), nn.Linear(256, 64))
    with torch.no_grad():
        model[0].weight[3, 5] = 50.0  # all other weights fall into one bin
    before = model[0].weight.clone()
    softq = SoftQuantizer(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(QualityWarning, match=r"1 of 2 layers has .*: 0\.weight; lower"):
            softq.finalize(bits=7, n_min=10, refinement="count")
    assert torch.equal(model[0].weight, before)
    with pytest.warns(QualityWarning, match=r"0\.weight"):
        found = softq.finalize(bits=7, n_min=10, refinement="count")
    assert found.layers[0].note == CONSTANT
    assert found.warnings[0].layers == ("0.weight",)
    assert len(model[0].weight.unique()) == 1


def test_wrong_numbers_are_named_as_given() -> None:
    model = nn.Linear(64, 16)
    with pytest.raises(ValueError, match=r"`rd_weight` must be finite and >= 0, got -1$"):
        SoftQuantizer(model).finalize(rd_weight=-1)
    for name in ("h", "w", "alpha"):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got '0.1'$"):
            SoftQuantizer(model, **{name: "0.1"})


def trained(h: float, w: float = 0.5, steps: int = 30) -> CompressionReport:
    """A network under a force only, with plain steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 16, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    softq = SoftQuantizer(model, h=h, w=w, alpha=0.0)
    softq.attach(optimizer)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return softq.finalize()


def test_weights_that_a_strong_force_throws_apart_are_reported() -> None:
    quiet = trained(1e-4)
    assert all(row.spread <= 1 for row in quiet.layers)
    assert not any(row.scattered for row in quiet.layers)
    found = trained(1e3)
    assert [warning.kind for warning in found.warnings] == ["scattered"]
    assert found.warnings[0].layers == ("0.weight", "1.weight")
    assert "lower `h` or the learning rate" in found.warnings[0].advice
    assert "\nwarning: 2 of 2 layers have scattered (the standard deviation" in str(found)
    assert not replace(found, steps=None).warnings


def test_weights_that_a_wide_well_gathers_in_one_place_name_the_width() -> None:
    with pytest.warns(QualityWarning, match="after training: .*; lower `h` or `w`"):
        found = trained(1e-5, w=50.0, steps=100)
    assert all(row.clusters_before > 1 and row.spread < 0.1 for row in found.layers)


def test_a_quantizer_that_no_optimizer_knows_is_reported() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    first = SoftQuantizer(model).finalize().warnings
    assert [warning.kind for warning in first] == ["not coupled"]
    assert first[0].layers == ("0.weight", "1.weight")
    assert str(first[0]) == (
        "the force has not entered any step; attach the SoftQuantizer to the optimizer before the "
        "training"
    )
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    uncoupled = SoftQuantizer(other, h=0.0).finalize(rd_weight=0.0).warnings
    assert [warning.kind for warning in uncoupled] == ["not gathered"]


@pytest.mark.parametrize("granularity", ["layer", "channel", "group:24"])
def test_the_spread_is_the_standard_deviation_after_over_that_before(granularity: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(48, 16, bias=False)
    softq = SoftQuantizer(model, granularity=granularity)
    with torch.no_grad():
        model.weight.mul_(1.25)
    assert softq.finalize(10).layers[0].spread == pytest.approx(1.25, rel=1e-3)


def test_the_text_of_a_quantizer() -> None:
    model = nn.Linear(64, 16)
    softq = SoftQuantizer(model)
    text = "<SoftQuantizer h=0.01, w=0.5, potential='linear': 1,024 coupled weights, layers: 1, "
    assert repr(softq) == f"{text}steps: 0, optimizers: none>"
    softq.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert repr(softq) == f"{text}steps: 0, optimizers: SGD>"
