"""Pretraining on other data than a run is about: parts of the digits, other classes, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Recorder

from pysoftq.data.datasets import load_dataset
from pysoftq.errors import ConfigError
from pysoftq.models.weight_files import load_weights
from pysoftq.run.config import make_config
from pysoftq.run.driver import compress

SMALL = {
    "model": "digits-resnet-small",
    "epochs": 1,
    "pretrain_epochs": 1,
    "batch_size": 200,
    "pretrain_batch_size": 200,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))


def run(folder: Path, **given: Any) -> Recorder:
    recorder = Recorder()
    compress(make_config(SMALL, given), folder, recorder)
    return recorder


def photos(folder: Path, classes: int) -> str:
    """Folders of grey images, as many as classes, whose brightness tells the class."""
    rng = np.random.default_rng(0)
    for half in ("train", "test"):
        for label in range(classes):
            place = folder / half / str(label)
            place.mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(40 * label, 40 * label + 40, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return f"imagefolder:{folder}"


def test_some_of_the_digits_are_still_of_ten_classes() -> None:
    whole, part = load_dataset("digits", seed=3), load_dataset("digits:2-4", seed=3)
    assert part.name == "digits:2-4"
    assert part.classes == whole.classes
    for half, half_of_all in ((part.train, whole.train), (part.test, whole.test)):
        wanted = (half_of_all.labels >= 2) & (half_of_all.labels <= 4)
        assert torch.equal(half.labels, half_of_all.labels[wanted])
        assert torch.equal(half.pixels, half_of_all.pixels[wanted])


def test_moved_digits_are_moved_for_good() -> None:
    whole, moved = load_dataset("digits", seed=3), load_dataset("digits:shifted", seed=3)
    assert torch.equal(moved.train.labels, whole.train.labels)
    assert torch.equal(moved.train.pixels, load_dataset("digits:shifted", seed=3).train.pixels)
    assert not torch.equal(moved.train.pixels, load_dataset("digits:shifted", seed=4).train.pixels)
    # Every image is found in its original, moved by at most two pixels.
    for image, original in zip(moved.test.pixels[:50, ..., 0], whole.test.pixels[:50], strict=True):
        padded = torch.nn.functional.pad(original[..., 0], (2, 2, 2, 2))
        cuts = (padded[top : top + 8, left : left + 8] for top in range(5) for left in range(5))
        assert any(torch.equal(image, cut) for cut in cuts)


def test_what_is_pretrained_is_what_a_run_on_those_data_begins_with(tmp_path: Path) -> None:
    first = run(tmp_path / "part", dataset="digits:0-4")
    second = run(tmp_path / "whole", dataset="digits", pretrain_dataset="digits:0-4")
    assert any("pretraining" in text for text in first.messages)
    assert any("pretrained network found" in text for text in second.messages)
    begun = load_weights(tmp_path / "part" / "pretrained.safetensors")
    for name, value in load_weights(tmp_path / "whole" / "pretrained.safetensors").items():
        assert torch.equal(value, begun[name])
    assert second.epochs[0]["train_accuracy"] < first.epochs[0]["train_accuracy"]


def test_a_head_of_other_classes_is_begun_anew(tmp_path: Path) -> None:
    three, two = photos(tmp_path / "three", 3), photos(tmp_path / "two", 2)
    run(tmp_path / "source", dataset=three)
    recorder = run(tmp_path / "target", dataset=two, pretrain_dataset=three)
    assert "begun anew, for other classes: linear.weight, linear.bias" in recorder.messages
    source = load_weights(tmp_path / "source" / "pretrained.safetensors")
    target = load_weights(tmp_path / "target" / "pretrained.safetensors")
    assert target.pop("linear.weight").shape == (2, 16)
    assert target.pop("linear.bias").shape == (2,)
    for name, value in target.items():
        assert torch.equal(value, source[name])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pretrain_dataset": "imagefolder:PHOTOS"}, "in_channels is 1 of the one, 3 of the other"),
        ({"pretrain_dataset": "pydoc"}, "cannot be pretrained on pydoc: context is None"),
        ({"pretrain_dataset": "nonsense"}, "option 'pretrain_dataset'.* expected one of"),
        ({"dataset": "digits:7-3"}, "unknown data set 'digits:7-3'; expected two digits A-B"),
    ],
)
def test_refusals(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", 2)
    given = {name: value.replace("imagefolder:PHOTOS", place) for name, value in given.items()}
    with pytest.raises((ConfigError, ValueError), match=told):
        run(tmp_path / "run", **given)
    assert not (tmp_path / "run" / "config.yaml").is_file()
