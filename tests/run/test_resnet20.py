"""ResNet-20 on real photographs: what the report tells holds for every form of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from tiny import Recorder
from torch import nn

from pysoftq.artifact import inspect_compressed, load_compressed
from pysoftq.data.datasets import load_dataset
from pysoftq.data.images import Dataset
from pysoftq.export import to_onnx, to_state_dict
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import load_weights
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.driver import compress
from pysoftq.run.evaluation import evaluate

pytestmark = pytest.mark.long

WEIGHTS = 268_336  # in the layers that are coupled


def from_state_dict(file: Path) -> nn.Module:
    dense = file.with_name("dense.safetensors")
    to_state_dict(file, dense, overwrite=True)
    model = build_model("resnet20", 10)
    model.load_state_dict(load_weights(dense))
    return model


FORMS: dict[str, Callable[[Path], nn.Module]] = {
    "fresh": lambda file: load_compressed(file, build_model("resnet20", 10)),
    "rebuilt": load_compressed,
    "lazy": lambda file: load_compressed(file, lazy=True),
    "state dict": from_state_dict,
}


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 images of each class, to train and to test with."""
    few = tmp_path_factory.mktemp("few")
    for image in photographs.glob("test/*/00[0-4]0.jpg"):
        for half in ("train", "test"):
            link = few / half / image.parent.name / image.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(image)
    return few


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return load_dataset(f"imagefolder:{folder}")


@pytest.fixture(scope="module", params=["packed", "entropy"])
def run(
    request: pytest.FixtureRequest,
    folder: Path,
    shared_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A step of training, and then 4 bits for each weight."""
    config: CompressConfig = make_config(
        {
            "dataset": f"imagefolder:{folder}",
            "model": "resnet20",
            "weights": str(shared_data / "resnet20-cifar10-jpeg.pt"),
            "epochs": 1,
            "batch_size": 50,
            "bits": 4,
            "n_min": 0,
            "recipe": "paper",
            "coding": request.param,
        }
    )
    path = tmp_path_factory.mktemp("runs") / "run"
    compress(config, path, Recorder())
    return path


def rows(run: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {row["name"]: row for row in report["networks"]}


def test_size_on_disk(run: Path) -> None:
    file, row = run / "compressed.safetensors", rows(run)["soft, refined"]
    info = inspect_compressed(file)
    assert row["bytes_on_disk"] == info.bytes_on_disk == file.stat().st_size
    assert sum(layer.N for layer in info.layers) == WEIGHTS
    layers = sum(layer.bytes_on_disk for layer in info.layers)
    codebooks = 4 * sum(layer.K for layer in info.layers)
    if {layer.coding for layer in info.layers} == {"packed"}:
        assert layers == WEIGHTS // 2 + codebooks
    else:
        assert layers == pytest.approx(row["entropy_bits"] * WEIGHTS / 8 + codebooks, rel=0.01)
    rest = info.bytes_float32 - 4 * WEIGHTS  # biases and normalisation
    assert info.bytes_on_disk - layers - rest == info.bytes_by_kind["description"] < 1000


@pytest.mark.parametrize("form", FORMS)
def test_accuracy_after_reload(run: Path, data: Dataset, form: str) -> None:
    row = rows(run)["soft, refined"]
    model = FORMS[form](run / "compressed.safetensors")
    assert evaluate(model, data, data.test) == (row["loss"], row["accuracy"])


@pytest.mark.parametrize("run", ["packed"], indirect=True)  # an export reads what a load returns
def test_accuracy_in_onnxruntime(run: Path, data: Dataset) -> None:
    path = run / "net.onnx"
    to_onnx(run / "compressed.safetensors", path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    right = 0
    for images, labels in data.ordered(data.test):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        right += int((logits.argmax(1) == labels.numpy()).sum())
    row = rows(run)["soft, refined"]
    assert right / len(data.test) == row["accuracy"]
    assert path.stat().st_size < WEIGHTS / 2 + 40_000
