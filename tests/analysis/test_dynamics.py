from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import metrics, records, write_run

from pysoftq.analysis.dynamics import read_losses, read_run
from pysoftq.run.records import WeightRecords


@pytest.fixture(scope="module")
def values() -> dict:
    return records(size=60)


def test_read_run_returns_what_was_written(tmp_path: Path, values: dict) -> None:
    run = read_run(write_run(tmp_path, values, metrics()))
    for key, value in values.items():
        np.testing.assert_array_equal(getattr(run.records, key), value)
    assert isinstance(run.records.width, float)
    assert isinstance(run.records.bins, int)
    assert run.records.layer == "layer3.0.conv2.weight"
    assert run.losses.epochs.tolist() == [row["epoch"] for row in metrics()]
    assert run.losses.task.tolist() == [row["task_loss"] for row in metrics()]
    assert run.losses.coupling.tolist() == [row["coupling_energy"] for row in metrics()]
    assert run.losses.steps.tolist() == [row["step"] for row in metrics()]
    assert run.losses.merit_soft.tolist() == [row["test_accuracy_soft"] for row in metrics()]
    compressed = [row["test_accuracy_compressed"] for row in metrics()]
    assert run.losses.merit_compressed.tolist() == compressed
    assert run.losses.bits_before.tolist() == [row["mean_bits_before"] for row in metrics()]
    bits = [row["mean_bits_compressed"] for row in metrics()]
    assert run.losses.bits_compressed.tolist() == bits
    for layer, counts in run.losses.clusters.items():
        assert counts.tolist() == [row["clusters"][layer] for row in metrics()]


def test_density_of_a_record(tmp_path: Path, values: dict) -> None:
    found = WeightRecords.load(write_run(tmp_path, values, metrics()) / "records.npz").density(-1)
    theta = values["weights_soft"]
    assert (found.low, found.high) == (theta.min(), theta.max())
    assert found.size == theta.size == found.counts.sum()
    inside = np.abs(theta[:, None] - found.midpoints) <= 0.51 * found.spacing
    assert (inside[:, found.counts > 0].any(axis=1)).all()


def test_epochs_of_steps(tmp_path: Path, values: dict) -> None:
    losses = read_run(write_run(tmp_path, values, metrics())).losses
    np.testing.assert_allclose(losses.epochs_of(np.array([0, 25, 300])), [0, 0.5, 6])


@pytest.mark.parametrize("name", ["records.npz", "metrics.jsonl"])
def test_missing_file_is_named(tmp_path: Path, values: dict, name: str) -> None:
    write_run(tmp_path, values, metrics())
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        read_run(tmp_path)


@pytest.mark.parametrize("key", ["layer", "width", "weights_early", "trajectories", "densities"])
def test_records_without_an_entry(tmp_path: Path, values: dict, key: str) -> None:
    np.savez(tmp_path / "records.npz", **{k: v for k, v in values.items() if k != key})
    with pytest.raises(ValueError, match=f"not the records of a run: without {key}$"):
        WeightRecords.load(tmp_path / "records.npz")


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04 cut short"], ids=["empty", "text", "cut"]
)
def test_foreign_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable \.npz archive"):
        WeightRecords.load(path)


def test_altered_archive(tmp_path: Path, values: dict) -> None:
    path = write_run(tmp_path, values, metrics()) / "records.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a readable \.npz archive"):
        WeightRecords.load(path)


def test_bare_array_is_foreign(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"not a readable \.npz archive"):
        WeightRecords.load(path)


def test_pickled_records_are_refused(tmp_path: Path, values: dict) -> None:
    np.savez(tmp_path / "records.npz", **{**values, "layer": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=r"not a readable \.npz archive"):
        WeightRecords.load(tmp_path / "records.npz")


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        (
            "weights_early",
            np.zeros(3, np.float32),
            r"stages of shapes .* expected one shape \(N,\)",
        ),
        ("trajectory_steps", np.arange(4), r"expected \(T, M\) and \(T,\)"),
        ("trajectories", np.zeros(31, np.float32), r"expected \(T, M\) and \(T,\)"),
        ("density_steps", np.arange(4), r"expected \(D, B\), \(D, 2\) and \(D,\)"),
        ("densities", np.zeros(7, int), r"expected \(D, B\), \(D, 2\) and \(D,\)"),
        ("density_ranges", np.zeros((7, 3)), r"expected \(D, B\), \(D, 2\) and \(D,\)"),
        ("weights_soft", np.zeros(60, np.int64), "int64 for weights_soft, expected floats"),
    ],
)
def test_records_of_wrong_shape_or_type(
    tmp_path: Path, values: dict, key: str, wrong: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "records.npz", **{**values, key: wrong})
    with pytest.raises(ValueError, match=message):
        WeightRecords.load(tmp_path / "records.npz")


def test_losses_in_order_with_the_later_line_of_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = [(1, 0.5, -2.0, {"a": 3}), (0, 0.4, -1.0, {"a": 9}), (1, 0.6, -3.0, {"a": 2})]
    keys = ("epoch", "task_loss", "coupling_energy", "clusters")
    rows = [metrics()[0] | dict(zip(keys, value, strict=True)) for value in values]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    losses = read_losses(path)
    assert losses.epochs.tolist() == [0, 1]
    assert losses.task.tolist() == [0.4, 0.6]
    assert losses.coupling.tolist() == [-1.0, -3.0]
    assert losses.clusters["a"].tolist() == [9, 2]


@pytest.mark.parametrize(
    "line",
    [
        *("{", "3", '{"epoch": 1}'),
        json.dumps({**metrics()[1], "task_loss": None}),
        json.dumps({**metrics()[1], "clusters": []}),
    ],
)
def test_foreign_metrics_name_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(metrics()[0]) + "\n" + line + "\n")
    with pytest.raises(
        ValueError, match=r"metrics.jsonl, line 2: expected a JSON object with epoch"
    ):
        read_losses(path)


def test_clusters_of_other_layers(tmp_path: Path) -> None:
    rows = metrics()
    del rows[2]["clusters"]["linear.weight"]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="clusters of other layers"):
        read_losses(path)


def test_empty_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="empty, expected one line per epoch"):
        read_losses(path)
