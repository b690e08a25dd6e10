"""Runs with a front: files, sizes, the choice of one, what a kill leaves behind, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_run import exit_code_of_killed
from tiny import Options, Recorder, tiny_digits, tiny_options, tiny_weights

from pysoftq.artifact import inspect_compressed, load_compressed
from pysoftq.compressor import compressor
from pysoftq.data.text import TextData
from pysoftq.errors import ConfigError
from pysoftq.run import evaluation, finetune, front_files
from pysoftq.run.config import CompressConfig, command_line, make_config, read_config
from pysoftq.run.driver import compress
from pysoftq.run.folder import RunFolder
from pysoftq.run.front import Front, FrontRung, pick
from pysoftq.run.front_sizes import EPOCHS, front_sizes, parse_front
from pysoftq.run.listing import overview
from pysoftq.run.setup import held_out
from pysoftq.run.summary import Summary

SIZES = (6000, 5000, 4000)


class Killed(BaseException):
    """Ends a run where no code catches it."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def options(weights: Path) -> Options:
    return tiny_options(weights, epochs=1, codebook_epochs=2, front=SIZES)


Finished = tuple[CompressConfig, Path, Summary]


@pytest.fixture(scope="module")
def finished(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that nothing interrupts; not to be changed."""
    config, path = options(), tmp_path_factory.mktemp("front") / "run"
    return config, path, compress(config, path, Recorder(), data=tiny_digits())


def rungs(*values: tuple[int, float, float]) -> Front:
    """A front of files of these bytes, bits and validation accuracies."""
    made = [
        FrontRung(f"front/{size}-bytes.safetensors", size, size, size, bits, merit)
        for size, bits, merit in values
    ]
    sizes = tuple(rung.bytes for rung in made)
    return Front("classification", sizes, 0.95, tuple(made))


def contents(path: Path) -> dict[str, bytes]:
    """What a run leaves behind of its networks."""
    names = ("front.json", "compressed.safetensors", "soft.safetensors")
    found = {name: (path / name).read_bytes() for name in names}
    return found | {file.name: file.read_bytes() for file in (path / "front").iterdir()}


def test_each_size_has_its_file(finished: Finished) -> None:
    _, path, _ = finished
    front = Front.read(path / "front.json")
    assert front.sizes == SIZES
    names = [f"front/{size}-bytes.safetensors" for size in SIZES]
    assert [rung.file for rung in front.rungs] == names
    assert sorted(file.name for file in (path / "front").iterdir()) == sorted(
        Path(name).name for name in names
    )
    for size, rung in zip(SIZES, front.rungs, strict=True):
        info = inspect_compressed(path / rung.file)
        assert rung.target_bytes == size
        assert rung.bytes == info.bytes_on_disk <= size
        assert rung.predicted_bytes == pytest.approx(rung.bytes, rel=0.01)
        assert rung.bits == pytest.approx(info.entropy_bits, rel=1e-6)


def test_merits_are_those_of_the_files(finished: Finished) -> None:
    config, path, _ = finished
    front = Front.read(path / "front.json")
    data, held = held_out(tiny_digits(), config)
    assert held is not None
    for rung in front.rungs:
        network = load_compressed(path / rung.file)
        own = evaluation.evaluate(network, data, held, varied=True)[1]
        assert rung.validation == pytest.approx(own)
        assert rung.test == evaluation.evaluate(network, data, data.test)[1]


def test_the_file_of_the_run_is_one_of_the_front(finished: Finished) -> None:
    _, path, summary = finished
    front, folder = Front.read(path / "front.json"), RunFolder(path)
    assert front.chosen == front.least(2.0)
    rung = front.rungs[front.chosen]
    assert folder.compressed.read_bytes() == (path / rung.file).read_bytes()
    assert summary.target is not None
    assert summary.target.target.bytes == rung.target_bytes
    assert summary.target.bytes_on_disk == rung.bytes
    assert summary.compressed.accuracy == rung.test
    text = folder.report_text.read_text()
    assert "Front" in text
    assert rung.file in text
    assert overview(path).rungs == len(SIZES)


def test_networks_on_the_way_have_no_files(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressor, "MIN_STEPS", 1)
    config, path, observer = options(front=(6000, 2000)), tmp_path / "run", Recorder()
    summary = compress(config, path, observer, data=tiny_digits())
    assert summary.target is not None
    ways = [rung.between for rung in summary.target.rungs]
    assert ways.count(False) == 2
    assert ways.count(True) >= 1
    front = Front.read(path / "front.json")
    assert [rung.target_bytes for rung in front.rungs] == [6000, 2000]
    assert len(list((path / "front").iterdir())) == 2
    chosen = front.rungs[front.chosen]
    assert summary.target.rung.target.bytes == chosen.target_bytes
    assert summary.target.rung.bytes == chosen.predicted_bytes
    lines = [text for text in observer.messages if text.startswith("network ")]
    assert [text.partition(":")[0] for text in lines] == ["network 1 of 2", "network 2 of 2"]
    (way,) = [text for text in observer.messages if text.startswith("training of clusters: to")]
    assert way.count("bytes") == len(ways)
    again = tmp_path / "again"
    _killed(again, config, finetune__save_checkpoint=_dying(finetune.save_checkpoint, 3))
    compress(config, again, Recorder(), resume=True, data=tiny_digits())
    assert contents(again) == contents(path)


def test_the_test_data_are_read_once_and_at_the_end(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counted(
        model: Any, data: Any, half: Any, *more: Any, varied: bool = False
    ) -> tuple[float, float]:
        name = {len(data.test): "test", len(data.train): "train"}.get(len(half), "validation")
        reads.append(name)
        return original(model, data, half, *more, varied=varied)

    original = evaluation.evaluate
    for module in ("metrics", "target", "setup"):
        monkeypatch.setattr(f"pysoftq.run.{module}.evaluate", counted)
    config = options(epochs=1, codebook_epochs=1, front=(6000, 4000))
    observer = Recorder()
    summary = compress(config, tmp_path / "run", observer, data=tiny_digits())
    end = reads.index("test")
    assert reads[end:] == ["test"] * (len(summary.networks) + 2)
    assert len(observer.networks) == len(summary.networks) + 2  # each is announced
    assert {row.name for row in summary.networks} < set(observer.networks)
    assert reads[:end].count("validation") >= 3


def test_a_number_of_rungs_is_a_range_of_sizes(options: Options, tmp_path: Path) -> None:
    config = options(front=3, epochs=1, codebook_epochs=1)
    compress(config, tmp_path / "run", Recorder(), data=tiny_digits())
    front = Front.read(tmp_path / "run" / "front.json")
    first, second, third = front.sizes
    assert first > second > third
    assert len(front.rungs) == 3
    assert first - second > second - third


def _killed(path: Path, config: CompressConfig, *, resume: bool = False, **patches: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patches.items():
            patch.setattr(f"pysoftq.run.{name.replace('__', '.')}", value)
        with pytest.raises(Killed):
            compress(config, path, Recorder(), resume=resume, data=tiny_digits())


def _dying(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, which dies at a call."""
    left = iter(range(call))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(
    "place",
    [
        pytest.param({"front_files__Front.write": 1}, id="between a file and front.json"),
        pytest.param({"front_files__load_compressed": 1}, id="in the measurement of the front"),
    ],
)
def test_a_run_that_dies_goes_on_bit_for_bit(
    finished: Finished, tmp_path: Path, place: dict[str, int]
) -> None:
    config, whole, _ = finished
    path = tmp_path / "run"
    ((name, call),) = place.items()
    module, _, attribute = name.partition("__")
    original: Any = __import__(f"pysoftq.run.{module}", fromlist=["_"])
    for part in attribute.split("."):
        original = getattr(original, part)
    _killed(path, config, **{name: _dying(original, call)})
    early = {file.name: file.stat().st_mtime_ns for file in (path / "front").iterdir()}
    listed = Front.read(path / "front.json").rungs if (path / "front.json").is_file() else ()
    compress(
        make_config(read_config(path / "config.yaml")),
        path,
        Recorder(),
        resume=True,
        data=tiny_digits(),
    )
    assert contents(path) == contents(whole)
    for rung in listed:
        assert (path / rung.file).stat().st_mtime_ns == early[Path(rung.file).name]


def test_what_is_listed_is_kept(finished: Finished, options: Options, tmp_path: Path) -> None:
    """Also where another machine would train the rung to other bits."""
    path = tmp_path / "run"
    _killed(path, options(), target__rung_line=_dying(front_files.record_rung, 0))
    first = Front.read(finished[1] / "front.json").rungs[0]
    (path / "front").mkdir()
    (path / first.file).write_bytes((finished[1] / first.file).read_bytes()[::-1])
    marked = replace(first, validation=0.123, test=None)
    Front("classification", SIZES, 0.5, (marked,)).write(path / "front.json")
    died = _dying(front_files.write_compressed, 1)
    _killed(path, options(), resume=True, front_files__write_compressed=died)
    found = Front.read(path / "front.json")
    assert found.rungs[0] == marked
    assert len(found.rungs) == 2
    assert (path / first.file).read_bytes() == (finished[1] / first.file).read_bytes()[::-1]


def test_a_killed_process_goes_on_bit_for_bit(weights: Path, tmp_path: Path) -> None:
    """Killed in the middle of the last rung, after the checkpoint of an epoch before."""
    usual = ["--model", "digits-resnet-small", "--weights", str(weights), "--epochs", "1"]
    usual += ["--codebook-epochs", "2", "--batch-size", "256", "--front", "6kB,5kB,4kB"]
    usual += ["--threads", "1", "--validation", "0.1"]
    path, whole = tmp_path / "killed", tmp_path / "whole"
    assert exit_code_of_killed("compress", *usual, "--out", str(path)) == -9
    assert len(Front.read(path / "front.json").rungs) == 2
    assert overview(path).rungs == 2
    config = make_config(read_config(path / "config.yaml"))
    compress(config, path, Recorder(), resume=True)
    compress(config, whole, Recorder())
    assert contents(path) == contents(whole)


@pytest.mark.parametrize(
    ("text", "front"),
    [
        ("8", 8),
        (8, 8),
        ("20kB,60kB, 40000", (60000, 40000, 20000)),
        (["20kB", 60000], (60000, 20000)),
        ([60000, 20000], (60000, 20000)),
    ],
)
def test_fronts_are_read(text: Any, front: Any) -> None:
    config = make_config({"front": text})
    assert config.front == front
    assert make_config(config.to_dict()) == config
    assert config.target is None
    assert config.validates


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1", "expected 2 to 32 networks, or their sizes, got '1'"),
        ("60000", "expected 2 to 32 networks, or their sizes, got '60000'"),
        (True, "expected a number of networks, or sizes such as 60kB,40kB,20kB"),
        (2.5, "expected a number of networks, or sizes"),
        ("60kB", "expected 2 to 32 sizes, got '60kB'"),
        ("60kB,40x", "expected bytes, or a size such as 60kB"),
        ("60kB,60000,20kB", "60,000 bytes are given twice"),
        ("60kB,0", "expected sizes above 0"),
        ("60kB,", "expected bytes, or a size"),
        ([60000, 2.5], "expected sizes above 0"),
    ],
)
def test_other_values_are_no_front(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"option 'front': {message}"):
        make_config({"front": given})


@pytest.mark.parametrize("name", ["target_size", "target_bits", "max_drop"])
def test_a_front_excludes_other_targets(name: str) -> None:
    with pytest.raises(ConfigError, match=f"options 'front' and '{name}': choose one of them"):
        make_config({"front": 8, name: 1})


def test_a_front_brings_in_its_epochs() -> None:
    assert make_config({"front": 8}).codebook_epochs == 8 * EPOCHS
    assert make_config({"recipe": "best", "front": "9kB,8kB"}).codebook_epochs == 2 * EPOCHS
    assert make_config({"front": 8, "codebook_epochs": 7}).codebook_epochs == 7
    config = make_config({"front": (9000, 8000)})
    assert "--front 9000,8000" in command_line(config)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6000, 500), "option 'front': 500 bytes cannot be reached: the smallest file of this net"),
        ((60_000, 6000), "60,000 bytes are no compression: the network takes .* in float32"),
    ],
)
def test_sizes_that_no_file_has_are_refused_before_the_training(
    options: Options, tmp_path: Path, sizes: tuple[int, ...], message: str
) -> None:
    observer = Recorder()
    with pytest.raises(ConfigError, match=message):
        compress(options(front=sizes), tmp_path / "run", observer, data=tiny_digits())
    assert not (tmp_path / "run").exists()
    assert not observer.steps


def test_a_range_never_reaches_the_smallest_file() -> None:
    sizes = front_sizes(8, 3000, 20_000)
    assert len(set(sizes)) == 8
    assert sizes == tuple(sorted(sizes, reverse=True))
    assert sizes[-1] > 3000
    with pytest.raises(ConfigError, match="10 coupled weights are too few for 8 sizes"):
        front_sizes(8, 3000, 10)
    assert parse_front((1, 2)) == (2, 1)


def test_dominated_rungs_are_named() -> None:
    front = rungs((90, 4.0, 0.94), (80, 3.0, 0.95), (70, 2.0, 0.95), (60, 1.0, 0.90))
    assert [front.dominated(rung) for rung in front.rungs] == [True, True, False, False]


def test_picking() -> None:
    front = rungs((90, 4.0, 0.94), (80, 3.0, 0.95), (70, 2.0, 0.95), (60, 1.0, 0.90))
    assert pick(front, max_drop=0.5) == 2
    assert pick(front, max_drop=5.0001) == 3
    assert pick(front, target_size=89) == 2  # of equal ones the smallest
    assert pick(front, target_size=60) == 3
    assert pick(front, target_bits=1.5) == 3
    assert pick(rungs((90, 4.0, 0.93), (80, 3.0, 0.92)), target_bits=4) == 0


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_drop": 0.5}, "no network loses at most 0.5 points; nearest is front/90-bytes.safe"),
        ({"target_size": 59}, "takes at most 59 bytes; nearest is front/60-bytes.safetensors"),
        ({"target_bits": 0.9}, "takes at most 0.9 bits .* takes 60 bytes, 1.000 bits per weight"),
        ({"max_drop": float("nan")}, "the limit is not a number"),
        ({}, "expected a largest drop, a size or bits"),
        ({"max_drop": 1, "target_size": 1}, "expected a largest drop, a size or bits"),
    ],
)
def test_what_is_nearest_is_said(limit: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick(rungs((90, 4.0, 0.94), (60, 1.0, 0.90)), **limit)


def test_a_front_without_rungs_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network of the front is finished yet"):
        pick(rungs(), max_drop=1)
    path = tmp_path / "front.json"
    for text in ("{", "[]", '{"a": 1}', json.dumps({**rungs().to_dict(), "task": "x"})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"front\.json: not the front of a run"):
            Front.read(path)


def test_perplexities_follow_from_qualities() -> None:
    task = TextData("", None, None, "", 2).task  # type: ignore[arg-type]
    assert task.merit_at(task.quality(2.0, 0.0)) == pytest.approx(task.merit_of(2.0, 0.0))
    assert task.merit_at(float("-inf")) == task.merit_of(700.0, 0.0)
    assert json.dumps(task.merit_at(float("-inf")), allow_nan=False)
