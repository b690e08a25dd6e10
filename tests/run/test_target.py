"""Runs with a target: size, largest drop, resuming, what is read of the data, refusals."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Options, Recorder, tiny_digits, tiny_options, tiny_weights

from pysoftq.artifact import inspect_compressed
from pysoftq.compressor.rungs import Rung
from pysoftq.compressor.target import Target
from pysoftq.data.images import Dataset, Images
from pysoftq.data.text import TextData, Tokens
from pysoftq.errors import ConfigError, Interrupted
from pysoftq.run import evaluation
from pysoftq.run.checkpoint import KEYS, read_sealed
from pysoftq.run.config import CompressConfig, command_line, make_config, read_config
from pysoftq.run.driver import compress
from pysoftq.run.folder import RunFolder
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.reached import Reached
from pysoftq.run.records import read_metrics
from pysoftq.run.setup import held_out
from pysoftq.run.state import RunState
from pysoftq.run.summary import Summary

TARGETS: dict[str, dict[str, Any]] = {
    "bytes": {"target_size": 4000},
    "bits": {"target_bits": 2.0},
    "drop": {"max_drop": 5.0, "codebook_epochs": 4, "validation": 0.1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def options(weights: Path) -> Options:
    return tiny_options(weights, epochs=3, codebook_epochs=3)


# What is evaluated in the run with a largest drop.
READS: list[str] = []


@dataclass
class Stopping(Recorder):
    """Asks the run to stop after a step."""

    at: int = -1

    def on_step(self, state: RunState) -> None:
        super().on_step(state)
        if state.step == self.at:
            REQUEST.asked = True


REQUEST = StopRequest()


@pytest.fixture(autouse=True)
def stoppable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops are requested by the observer, not by signals."""

    class Held:
        def __enter__(self) -> StopRequest:
            REQUEST.asked = False
            return REQUEST

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr("pysoftq.run.driver.stop_on_signals", lambda **_: Held())


def run(config: CompressConfig, path: Path, *, at: int = -1, resume: bool = False) -> Summary:
    return compress(config, path, Stopping(at=at), resume=resume, data=tiny_digits())


Whole = Callable[[str], tuple[CompressConfig, Path, Summary]]


@pytest.fixture(scope="module")
def whole(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs by their kind of target that nothing interrupts; not to be changed."""

    data, evaluate = tiny_digits(), evaluation.evaluate

    def counted(
        model: Any, data: Any, half: Any, *more: Any, varied: bool = False
    ) -> tuple[float, float]:
        name = {len(data.test): "test", len(data.train): "train"}.get(len(half), "validation")
        READS.append(f"{name}, varied" if varied else name)
        return evaluate(model, data, half, *more, varied=varied)

    @cache
    def make(kind: str) -> tuple[CompressConfig, Path, Summary]:
        config, path = options(**TARGETS[kind]), tmp_path_factory.mktemp("target") / kind
        with pytest.MonkeyPatch.context() as patch:
            for module in ("metrics", "target", "setup") if kind == "drop" else ():
                patch.setattr(f"pysoftq.run.{module}.evaluate", counted)
            return config, path, compress(config, path, Recorder(), data=data)

    return make


@pytest.fixture(params=TARGETS)
def finished(request: pytest.FixtureRequest, whole: Whole) -> tuple[CompressConfig, Path, Summary]:
    """A run with each kind of target."""
    return whole(request.param)


def test_the_target_is_met_on_disk(finished: tuple[CompressConfig, Path, Summary]) -> None:
    config, path, summary = finished
    reached, folder = summary.target, RunFolder(path)
    assert reached is not None
    on_disk = folder.compressed.stat().st_size
    assert on_disk == reached.bytes_on_disk == summary.compressed.bytes_on_disk
    assert reached.rung.bytes == pytest.approx(on_disk, abs=16 + 0.002 * on_disk)
    if config.target_size is not None:
        assert 0.97 * config.target_size <= on_disk <= config.target_size
    if config.target_bits is not None:
        bits = inspect_compressed(folder.compressed).entropy_bits
        assert 0.97 * config.target_bits <= bits <= config.target_bits
    if config.max_drop is None:
        assert reached.met
        assert reached.rung.drop is None
    else:
        assert len(reached.rungs) == 6
        assert reached.met == (reached.rung.drop is not None and reached.rung.drop <= 5)


def test_files_and_reports_agree(finished: tuple[CompressConfig, Path, Summary]) -> None:
    config, path, summary = finished
    folder = RunFolder(path)
    assert Summary.read(folder.report) == summary
    content = json.loads(folder.report.read_text())
    assert content["target"]["met"] == (summary.target is not None and summary.target.met)
    text = folder.report_text.read_text()
    assert "target: at most" in text
    assert "bytes on disk" in text
    assert "times the gradient)" in text
    lines = read_metrics(folder.metrics)
    assert [line.epoch for line in lines] == list(range(config.epochs_in_all + 1))
    assert lines[-1].bytes_predicted == pytest.approx(
        summary.target.rung.bytes if summary.target else 0, abs=16
    )
    names = [row.name for row in summary.networks]
    assert names[:2] == ["pretrained", "soft"]
    assert "soft, refined" in names
    soft = load_file(folder.soft)["layer3.0.conv2.weight"]
    assert soft.unique().numel() > 1000  # before merging


@pytest.mark.parametrize(
    ("kind", "at"), [("bytes", 2), ("bytes", 15), ("bytes", 21), ("drop", 21), ("drop", 33)]
)
def test_a_stopped_run_goes_on_bit_for_bit(
    whole: Whole, tmp_path: Path, kind: str, at: int
) -> None:
    """In the coupling, within a network on the way, and between two."""
    config, complete, _ = whole(kind)
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(config, path, at=at)
    assert read_sealed(path / "checkpoint.pt", KEYS)["state"]["step"] == at
    # As the command line does: all options, but for a strength that is chosen, from the file.
    run(make_config(read_config(path / "config.yaml")), path, resume=True)
    for name in ("compressed.safetensors", "soft.safetensors"):
        assert (path / name).read_bytes() == (complete / name).read_bytes(), name
    for mine, other in zip(*map(_numbers, (path, complete)), strict=True):
        assert mine == other


def _numbers(path: Path) -> list[dict[str, Any]]:
    """All metrics but times."""
    rows = [line.to_dict() for line in read_metrics(path / "metrics.jsonl")]
    times = ("seconds", "images_per_second", "coupling_share")
    return [{name: row[name] for name in row if name not in times} for row in rows]


def test_a_finished_run_is_compared_again(options: Options, tmp_path: Path) -> None:
    config = options(epochs=1, codebook_epochs=1, target_bits=3.0)
    first = run(config, tmp_path / "run")
    before = (tmp_path / "run" / "compressed.safetensors").read_bytes()
    again = run(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "compressed.safetensors").read_bytes() == before
    assert again.networks == first.networks
    assert again.target == first.target


def test_the_test_set_is_not_read_before_the_end(whole: Whole) -> None:
    _, path, summary = whole("drop")
    end = READS.index("test")
    assert set(READS[end:]) == {"test"}  # each network of the table once
    assert len(READS[end:]) == len(summary.networks)
    assert READS[:end].count("validation, varied") == 1 + 6  # before compression, then the search
    assert READS[:end].count("validation") >= 1  # metrics of each epoch
    assert READS[:end].count("train") == 1  # metrics of epoch 0
    row = read_metrics(path / "metrics.jsonl")[0].to_dict()
    assert "validation_accuracy_soft" in row
    assert "test_accuracy_soft" not in row


def test_validation_data_are_of_all_classes_alike() -> None:
    data = tiny_digits(train=400)
    rest, held = data.hold_out(0.25, seed=3)
    assert isinstance(held, Images)
    for label in range(10):
        own = int((data.train.labels == label).sum())
        assert int((held.labels == label).sum()) == pytest.approx(own / 4, abs=0.51)
    assert len(rest.train) + len(held) == 400
    pixels = torch.cat([rest.train.pixels, held.pixels]).flatten(1).sort(0).values
    assert torch.equal(pixels, data.train.pixels.flatten(1).sort(0).values)
    assert rest.test is data.test
    same = data.hold_out(0.25, seed=3)[1]
    other = data.hold_out(0.25, seed=4)[1]
    assert torch.equal(same.pixels, held.pixels)
    assert not torch.equal(other.pixels, held.pixels)


@pytest.mark.parametrize(
    ("held", "moves", "copies"),
    [(100, (1, True), 8), (100, (0, True), 8), (1700, (2, False), 2), (5000, (1, True), 0)],
)
def test_few_images_are_judged_with_copies(held: int, moves: tuple[int, bool], copies: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (held, 4, 4, 1), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.arange(held) % 3)
    data = Dataset("few", images, images, ("a", "b", "c"), (0.0,), (1 / 255,), *moves)
    found, labels = (torch.cat(parts) for parts in zip(*data.varied(images), strict=True))
    as_stored = torch.cat([batch for batch, _ in data.ordered(images)])
    assert len(found) == (1 + copies) * held
    assert torch.equal(found[:held], as_stored)
    assert torch.equal(labels.view(-1, held), images.labels.expand(1 + copies, held))
    assert torch.equal(found, torch.cat([batch for batch, _ in data.varied(images)]))
    for copy in found.view(-1, held, 1, 4, 4)[1:]:
        assert not torch.equal(copy, as_stored)
        one = copy[0, 0]  # the part in view occurs in the image or its mirror image
        kept = one[one.any(1)][:, one.any(0)]
        windows = [
            whole.unfold(0, kept.shape[0], 1).unfold(1, kept.shape[1], 1)
            for whole in (as_stored[0, 0], as_stored[0, 0].flip(1))
        ]
        assert any((window == kept).all((2, 3)).any() for window in windows)


def test_images_that_training_does_not_vary_are_judged_alone() -> None:
    data = replace(tiny_digits(train=40), shift=0, flip=False)
    assert sum(len(labels) for _, labels in data.varied(data.train)) == len(data.train)


def test_small_classes_keep_an_image_and_give_one() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    images = Images(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), labels)
    data = Dataset("few", images, images, ("a", "b", "c"), (0.5,), (0.5,), 0, False)
    rest, held = data.hold_out(0.01, seed=0)
    assert held.labels.tolist() == [1, 2]
    assert rest.train.labels.tolist() == [0, 1, 2, 2]
    rest, held = data.hold_out(0.99, seed=0)
    assert rest.train.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="few: no class has two training images"):
        rest.hold_out(0.5, seed=0)


def test_the_end_of_a_text_is_held_out(options: Options) -> None:
    ids = torch.arange(1000) % 7
    data = TextData("letters", Tokens(ids, 10), Tokens(ids[:100], 10), "bytes", 7, "digest")
    rest, held = data.hold_out(0.1, seed=0)
    assert torch.equal(torch.cat([rest.train.ids, held.ids]), ids)
    assert held.ids.numel() == 100
    assert sum(targets.numel() for _, targets in data.varied(held)) == 99
    assert rest.fingerprint() != data.fingerprint()  # its pretrained network is another one
    with pytest.raises(ConfigError, match=r"letters: a share of 0\.005 of"):
        held_out(data, options(max_drop=1.0, validation=0.005))


def test_without_a_largest_drop_nothing_is_held_out(options: Options) -> None:
    data = tiny_digits()
    assert held_out(data, options(target_size=4000)) == (data, None)
    rest, held = held_out(data, options(max_drop=1.0, validation=0.2))
    assert held is not None
    assert len(rest.train) + len(held) == len(data.train)


def test_the_quality_falls_by_the_degradation() -> None:
    images, text = tiny_digits().task, TextData("", None, None, "", 2).task  # type: ignore[arg-type]
    assert images.quality(1.0, 0.95) - images.quality(1.0, 0.93) == pytest.approx(2.0)
    drop = text.quality(2.0, 0.0) - text.quality(2.01, 0.0)
    assert drop == pytest.approx(1.0)
    lost = text.degradation(text.merit_of(2.0, 0.0), text.merit_of(2.01, 0.0))
    assert lost == pytest.approx(100 * math.expm1(drop / 100))


def test_a_size_that_no_file_has_is_reported(options: Options, tmp_path: Path) -> None:
    config = options(epochs=1, codebook_epochs=1, target_size=500)
    observer = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = compress(config, tmp_path / "run", observer, data=tiny_digits())
    reached = summary.target
    assert reached is not None
    assert not reached.met
    smallest = f"the smallest file of this network takes {reached.rung.bytes:,} bytes"
    assert any("a target of 500 bytes cannot be met" in message for message in observer.messages)
    kinds = {warning.kind: str(warning) for warning in summary.warnings}
    assert smallest in kinds["target"]
    assert "raise the target" in kinds["constant"]
    assert (tmp_path / "run" / "compressed.safetensors").stat().st_size == reached.bytes_on_disk


def test_a_run_without_coupling_says_so(options: Options, tmp_path: Path) -> None:
    config, observer = options(epochs=1, codebook_epochs=1, h=0.0, target_bits=3.0), Recorder()
    summary = compress(config, tmp_path / "run", observer, data=tiny_digits())
    assert "coupling: none, h is 0" in observer.messages
    assert summary.target is not None
    assert summary.target.lines(0.0)[1].endswith("bits per weight (entropy), h 0")


def test_the_strength_is_chosen_where_none_is_set(options: Options, tmp_path: Path) -> None:
    images = {"dataset": "imagefolder:images"}
    config, observer = options(**images, epochs=1, codebook_epochs=1, target_bits=3.0), Recorder()
    assert config.chooses_h
    assert "h" not in config.to_dict()
    assert "--h" not in command_line(config)
    summary = compress(config, tmp_path / "run", observer, data=tiny_digits())
    assert summary.target is not None
    assert summary.target.h != config.h
    assert summary.target.ratio is not None
    assert summary.target.ratio == pytest.approx(0.5, rel=0.01)  # of a strength of three digits
    line = (
        f"coupling: h {summary.target.h:g}, force {summary.target.ratio:.3g} times the gradient ("
    )
    assert any(message.startswith(line) for message in observer.messages)
    saved = json.loads((tmp_path / "run" / "report.json").read_text())["config"]
    assert saved["h"] == summary.target.h
    assert not options(**images, h=0.01, target_bits=3.0).chooses_h
    for dataset in ("pydoc", "text:file.txt"):
        assert make_config({"dataset": dataset, "max_drop": 1.0}).chooses_h
        assert make_config({"dataset": dataset}).h == 0.003
    assert not options(**images).chooses_h


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_bits": 2.0}, "options 'target_size' and 'target_bits': choose one of them"),
        ({"recipe": "paper"}, "option 'recipe' must be best with 'target_size', got paper"),
        (
            {"refinement": "count"},
            "'refinement' must be levels, packed or entropy with 'target_size', got",
        ),
        ({"codebook_epochs": 0}, "'codebook_epochs' must be at least 1 with 'target_size', got 0"),
    ],
)
def test_options_that_do_not_fit_a_target_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"target_size": 1000, **given})


def test_options_of_a_target_stay_when_a_run_is_resumed(options: Options, tmp_path: Path) -> None:
    config = options(epochs=1, codebook_epochs=1, target_bits=3.0)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", at=2)
    other = {"codebook_epochs": 2, "target_bits": 2.0, "coding": "packed", "bits": 7}
    with pytest.raises(
        ConfigError, match=r"with other options: bits, target_bits, coding, codebook_epochs$"
    ):
        run(config.model_copy(update=other), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("60000", 60000), ("60kB", 60000), ("60 KB", 60000), ("1.5MB", 1_500_000)),
        *(("60KiB", 61440), ("1mib", 2**20), ("2k", 2000), ("0.5GB", 500_000_000)),
        *((" 7 B ", 7), (4096, 4096), ("1.0019kB", 1001)),
    ],
)
def test_sizes_are_read(text: Any, size: int) -> None:
    assert make_config({"target_size": text}).target_size == size
    assert make_config({"target_size": text}).target is not None


@pytest.mark.parametrize("text", ["60x", "", "kB", "-5", "1e5", "0x10", "60,000", "1.5.2", True])
def test_other_texts_are_no_sizes(text: Any) -> None:
    with pytest.raises(ConfigError, match="option 'target_size': expected bytes"):
        make_config({"target_size": text})


@pytest.mark.parametrize("text", ["0", "0.4", 0])
def test_sizes_are_above_zero(text: Any) -> None:
    with pytest.raises(ConfigError, match="option 'target_size': must be greater than 0"):
        make_config({"target_size": text})


def test_advice_names_what_to_change() -> None:
    def easier(target: Target) -> str:
        return Reached(target, (), 0, 1_000, 0.1, "points").easier

    assert easier(Target(max_drop=1.0)) == "lower `max_drop`"
    assert easier(Target(max_drop=1.0, bytes=1_000)) == "raise the target"
    front = tuple(Rung(Target(bytes=size), 10, drop=0.5) for size in (2_000, 1_000))
    reached = Reached(front[1].target, front, 1, 990, 0.1, "points")
    assert reached.easier == "pick a larger network of the front"
    assert reached.lines(0.5)[0] == "front: 2 target sizes: met"


def test_a_size_that_is_no_compression_is_refused(options: Options, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="option 'target_size': 1,000,000 bytes are no compr"):
        run(options(target_size="1MB"), tmp_path / "run")
    assert not (tmp_path / "run" / "pretrained.safetensors").exists()
