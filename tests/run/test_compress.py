"""``pysoftq compress`` from end to end: the run folder, kill and resume, refusals."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from killed_run import exit_code_of_killed
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import Recorder, tiny_digits
from torch import nn

from pysoftq.artifact import inspect_compressed, load_compressed
from pysoftq.baselines import histogram_equalize
from pysoftq.cli import main as cli_main
from pysoftq.cli.progress import TerminalObserver
from pysoftq.clusters.binning import identify
from pysoftq.clusters.refinement import refine
from pysoftq.data.datasets import load_dataset
from pysoftq.data.images import Dataset
from pysoftq.errors import BusyError, ConfigError
from pysoftq.interaction.segments import segment_count
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import coupled_weights
from pysoftq.run.checkpoint import KEYS, read_sealed
from pysoftq.run.config import make_config, read_config
from pysoftq.run.driver import compress as run_compress
from pysoftq.run.evaluation import evaluate
from pysoftq.run.folder import RunFolder, open_run
from pysoftq.run.outcome import written_size
from pysoftq.run.records import EpochMetrics
from pysoftq.run.state import RunState

pytestmark = pytest.mark.long

FILES = {
    "config.yaml",
    "metrics.jsonl",
    "tensorboard",
    "checkpoint.pt",
    "pretrained.safetensors",
    "soft.safetensors",
    "compressed.safetensors",
    "report.json",
    "report.txt",
    "records.npz",
    "figures",
}
NETWORKS = ["pretrained", "soft", "soft, 7-bit clusters", "soft, refined"]
HEQ = ["HEQ-5", "HEQ-4", "HEQ-3", "HEQ-2"]
STEPS = 3 * 12

Run = Callable[..., int]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "digits.pt"
    torch.save(build_model("digits-resnet-small", 10, 1).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def options(weights: Path) -> list[str]:
    given = {"model": "digits-resnet-small", "weights": weights, "h": 0.05, "lr": 0.02, "epochs": 3}
    given |= {"w": 0.5, "n-min": 10, "batch-size": 128, "recipe": "paper"}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    before = sys.argv
    sys.argv = ["pysoftq", *arguments]
    try:
        cli_main.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Path:
    """A run that nothing interrupted; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert call("--debug", "compress", *options, "--out", str(path)) == 0
    return path


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", seed=0)


def report(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "report.json").read_text())
    return content


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report(path)["networks"]}


def metrics(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for timed in ("seconds", "images_per_second", "coupling_share"):
            del line[timed]
    return lines


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("soft.safetensors", "compressed.safetensors", "pretrained.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert metrics(first) == metrics(second)
    assert report(first)["networks"] == report(second)["networks"]
    with np.load(first / "records.npz") as one, np.load(second / "records.npz") as other:
        assert set(one) == set(other)
        for name in one:
            assert np.array_equal(one[name], other[name]), name


def test_a_run_leaves_all_its_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir() if path.name[0] != "."} == FILES
    figures = {path.name for path in (finished / "figures").iterdir()}
    names = ("histograms", "trajectories", "losses")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert [line["epoch"] for line in metrics(finished)] == [0, 1, 2, 3]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["h"], config["epochs"], config["batch_size"]) == (0.05, 3, 128)
    text = (finished / "report.txt").read_text()
    assert all(name in text for name in (*NETWORKS, *HEQ, "layer3.0.conv2.weight"))


def test_every_network_is_compared(finished: Path) -> None:
    found = rows(finished)
    assert list(found) == [*NETWORKS, *HEQ]
    for name in HEQ:
        assert found[name]["container_bits"] == found[name]["bits"] == float(name[-1])
        # Counts of the bins are equal, up to one.
        assert found[name]["entropy_bits"] == pytest.approx(float(name[-1]), abs=0.01)
    refined, clusters = found["soft, refined"], found["soft, 7-bit clusters"]
    assert refined["entropy_bits"] <= refined["bits"] <= refined["container_bits"]
    assert refined["bits"] < clusters["bits"] <= 7
    assert refined["bytes_on_disk"] < found["pretrained"]["bytes_on_disk"]


def test_compressed_file_is_the_refined_network(finished: Path, digits: Dataset) -> None:
    path = finished / "compressed.safetensors"
    row = rows(finished)["soft, refined"]
    assert path.stat().st_size == row["bytes_on_disk"]
    info = inspect_compressed(path)
    assert row["ratio"] == info.ratio == path.stat().st_size / info.bytes_float32
    assert rows(finished)["pretrained"]["ratio"] is None
    assert {layer.coding for layer in info.layers} >= {"entropy"}
    assert info.bytes_on_disk == row["bytes_on_disk"]
    told = (row["bits"], row["container_bits"], row["entropy_bits"])
    found = (info.mean_bits, info.container_bits, info.entropy_bits)
    assert told == pytest.approx(found, rel=1e-12)
    model = load_compressed(path)
    assert evaluate(model, digits, digits.test)[1] == row["accuracy"]
    assert inspect_compressed(path).metadata == {
        "input": {"shape": [1, 8, 8], "dtype": "float32"},
        "mean": list(digits.mean),
        "std": list(digits.std),
    }
    layers = coupled_weights(model.state_dict())
    values = {name: len(np.unique(tensor.numpy())) for name, tensor in layers.items()}
    told = {layer["name"]: layer["clusters"] for layer in report(finished)["compression"]["layers"]}
    assert values == told
    sizes = np.array([tensor.numel() for tensor in layers.values()])
    bits = (sizes * np.log2(list(values.values()))).sum() / sizes.sum()
    assert row["bits"] == pytest.approx(bits)


def test_soft_network_is_the_end_of_the_training(finished: Path, digits: Dataset) -> None:
    model = build_model("digits-resnet-small", 10, 1)
    model.load_state_dict(load_file(finished / "soft.safetensors"))
    accuracy = evaluate(model, digits, digits.test)[1]
    assert accuracy == rows(finished)["soft"]["accuracy"]
    last = metrics(finished)[-1]
    assert last["test_accuracy_soft"] == accuracy
    found = rows(finished)
    refined = found.get("soft, refined, before training", found["soft, refined"])
    assert last["test_accuracy_compressed"] == refined["accuracy"]
    assert last["mean_bits_compressed"] == pytest.approx(refined["bits"])


def test_records_hold_what_the_figures_need(finished: Path, weights: Path) -> None:
    before = torch.load(weights, weights_only=True)
    with np.load(finished / "records.npz") as records:
        assert records["layer"].item() == "layer3.0.conv2.weight"
        name = records["layer"].item()
        assert np.array_equal(records["weights_pretrained"], before[name].flatten().numpy())
        soft = load_file(finished / "soft.safetensors")[name].flatten().numpy()
        assert np.array_equal(records["weights_soft"], soft)
        final = coupled_weights(load_compressed(finished / "compressed.safetensors").state_dict())
        assert np.array_equal(records["weights_final"], final[name].flatten().numpy())
        assert records["weights_early"].shape == soft.shape
        assert records["width"] == pytest.approx(0.5 * np.std(records["weights_pretrained"]))
        assert records["trajectory_layer"].item() == "linear.weight"
        assert records["trajectory_steps"].tolist() == list(range(STEPS + 1))
        assert records["trajectories"].shape == (STEPS + 1, 160)
        assert records["trajectory_width"] == pytest.approx(
            0.5 * np.std(before["linear.weight"].numpy())
        )
        assert records["density_steps"][-1] == STEPS
        assert records["density_ranges"][-1].tolist() == [soft.min(), soft.max()]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest and is seen in another test."""
    monkeypatch.setattr("pysoftq.analysis.figures.draw_run", lambda folder: None)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("minutes", "saved"),
    [("10", (1, 0, 12)), ("1e-9", (1, 4, 16))],
    ids=["from the end of an epoch", "from within an epoch"],
)
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, options: list[str], finished: Path, minutes: str, saved: tuple[int, int, int]
) -> None:
    run = tmp_path / "run"
    arguments = ["compress", *options, "--checkpoint-minutes", minutes, "--out", str(run)]
    assert exit_code_of_killed(*arguments) == -signal.SIGKILL
    state = read_sealed(run / "checkpoint.pt", KEYS)["state"]
    assert (state["epoch"], state["batch"], state["step"]) == saved
    assert not (run / "soft.safetensors").exists()
    # A line that the checkpoint does not know of is taken back.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99}\n{"epo')
    assert call("--debug", "compress", "--resume", str(run)) == 0
    assert_same_run(run, finished)


@pytest.mark.usefixtures("no_figures")
def test_a_run_with_groups_goes_on_bit_for_bit(tmp_path: Path, options: list[str]) -> None:
    arguments = ["compress", *options, "--granularity", "group:50", "--epochs", "2", "--n-min", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call("--debug", *arguments, "--out", str(whole)) == 0
    assert exit_code_of_killed(*arguments, "--out", str(killed)) == -signal.SIGKILL
    assert call("--debug", "compress", "--resume", str(killed)) == 0
    assert_same_run(killed, whole)
    told, network = report(whole), rows(whole)["soft, refined"]
    assert told["config"]["granularity"] == "group:50"
    assert network["bits"] == pytest.approx(told["compression"]["mean_bits"])
    assert network["codebook_bytes"] == told["compression"]["codebook_bytes"] > 0
    assert network["bytes_on_disk"] == (whole / "compressed.safetensors").stat().st_size
    with np.load(whole / "records.npz") as records:
        assert str(records["layer"]) == "layer3.0.conv2.weight, segment 0 of 48"
        soft = load_file(whole / "soft.safetensors")["layer3.0.conv2.weight"].flatten()
        np.testing.assert_array_equal(records["weights_soft"], soft[:50])
    for layer in told["compression"]["layers"]:
        shape = next(
            t["shape"] for t in told["compression"]["tensors"] if t["name"] == layer["name"]
        )
        assert layer["segments"] == segment_count(shape, "group:50")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_with_130_and_goes_on(
    tmp_path: Path,
    options: list[str],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def interrupt(self: TerminalObserver, state: RunState) -> None:
        if state.step == 20:
            os.kill(os.getpid(), number)

    run = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(TerminalObserver, "on_step", interrupt)
        assert call("compress", *options, "--out", run) == 130
    assert f"pysoftq compress --resume {run}" in capsys.readouterr().err
    state = read_sealed(tmp_path / "run" / "checkpoint.pt", KEYS)["state"]
    assert state["step"] == 20
    assert call("--debug", "compress", "--resume", run) == 0
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.gpu
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("graph", ["on", "off"])
def test_an_interrupted_run_on_a_gpu_goes_on_bit_for_bit(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    def interrupt(self: TerminalObserver, state: RunState) -> None:
        if state.step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    whole, run = tmp_path / "whole", tmp_path / "run"
    chosen = [*options, "--device", "cuda", "--graph", graph]
    assert call("--debug", "compress", *chosen, "--out", str(whole)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(TerminalObserver, "on_step", interrupt)
        assert call("compress", *chosen, "--out", str(run)) == 130
    assert call("--debug", "compress", "--resume", str(run)) == 0
    assert_same_run(run, whole)


def copied(run: Path, to: Path) -> Path:
    """A copy of what a run needs to be resumed."""
    to.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "checkpoint.pt", "pretrained.safetensors"):
        (to / name).write_bytes((run / name).read_bytes())
    return to


@pytest.mark.usefixtures("no_figures")
def test_a_finished_run_is_evaluated_anew(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path / "run")
    assert call("--debug", "compress", "--resume", str(run)) == 0
    assert_same_run(run, finished)
    assert call("--debug", "compress", "--resume", str(run), "--n-min", "0") == 0
    found, before = rows(run), rows(finished)
    assert found["soft"] == before["soft"]
    assert found["soft, refined"]["bits"] == found["soft, 7-bit clusters"]["bits"]
    assert found["soft, refined"]["bits"] > before["soft, refined"]["bits"]

    text = capsys.readouterr().out
    assert "digits-resnet-small on digits: h 0.05, w 0.5, 3 epochs" in text
    assert f"resuming after step {STEPS} of {STEPS}" in text
    assert "HEQ-4" in text
    assert "layer3.0.conv2.weight" in text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("strict", "code"), [("--strict", 3), ("--no-strict", 0)])
def test_warnings_of_a_finished_run(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], strict: str, code: int
) -> None:
    run = copied(finished, tmp_path / "run")
    harsh = ("--refinement", "levels", "--rd-weight", "1e6", "--codebook-epochs", "0")
    assert call("compress", "--resume", str(run), *harsh, strict) == code
    warning = next(one for one in report(run)["warnings"] if one["kind"] == "constant")
    assert len(warning["layers"]) == 8
    expected = f"warning: {warning['text']}; {warning['advice']}\n"
    assert expected in capsys.readouterr().err
    assert expected.upper()[:8] in (run / "report.txt").read_text().splitlines()[0]
    notes = [layer["note"] for layer in report(run)["compression"]["layers"]]
    assert all("constant" in note for note in notes)
    assert (run / "compressed.safetensors").is_file()


def test_a_run_whose_figures_cannot_be_drawn(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr("pysoftq.analysis.figures.draw_run", fail)
    run = copied(finished, tmp_path / "run")
    assert call("compress", "--resume", str(run)) == 0
    output = capsys.readouterr()
    assert f"written to {run}: compressed.safetensors, report.txt, report.json\n" in output.out
    again = f"draw them again with: pysoftq compress --resume {run}"
    assert f"warning: figures not drawn: latex could not be found; {again}\n" in output.err
    assert_same_run(run, finished)


def test_an_interrupt_while_figures_are_drawn(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pysoftq.analysis.figures.draw_run", stop)
    run = copied(finished, tmp_path / "run")
    assert call("compress", "--resume", str(run)) == 130
    again = f"draw the figures with: pysoftq compress --resume {run}"
    assert f"interrupted; all results are in {run}; {again}\n" in capsys.readouterr().err
    assert_same_run(run, finished)


def test_a_damaged_file_of_a_run_is_named(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pretrained.safetensors", "checkpoint.pt"):
        run = copied(finished, tmp_path / name)
        (run / name).write_bytes((run / name).read_bytes()[:-50])
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        assert call("compress", "--resume", str(run), "--n-min", "3") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {run / name} is ")
        assert error.count("\n") == 1
        assert {name: (run / name).read_bytes() for name in before} == before


def test_one_process_at_a_time(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path / "run")
    with open_run(run):
        assert call("compress", "--resume", str(run)) == 1
    assert "another process is working on the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume", "{run}", "--lr", "0.1"], 2, "--lr cannot be changed"),
        (["--resume", "{run}", "--out", "x"], 2, "--resume excludes --out"),
        (["--resume", "{empty}"], 2, "holds no run to resume"),
        (["--resume", "{empty}/nowhere"], 2, "does not exist"),
        (["--out", "{run}"], 2, "holds a run already"),
        (["--out", ""], 2, "the name is empty"),
        (["--resume", ""], 2, "does not exist"),
        (["--config", "{latin}"], 2, "latin.yaml is no YAML"),
        (["--device", "{missing}"], 2, "option 'device'"),
        (["--device", "cuda:99"], 2, "there is no cuda:99 here"),
        (["--device", "gpu"], 2, "expected auto, cpu, cuda, cuda:N or mps"),
        (["--device", "cpu", "--graph", "on"], 2, "CUDA graphs need a CUDA device"),
        (["--h", "-1"], 2, "option 'h'"),
        (["--dataset", "mnist"], 2, "option 'dataset'"),
        (["--config", "{yaml}"], 2, "unknown option 'strength'"),
        (["--weights", "nowhere.pt", "--out", "{new}"], 2, "'weights': there is no nowhere.pt"),
        (["--exclude", "nothing*", "--out", "{new}"], 1, "nothing*"),  # before any pretraining
        (["--override", "nothing*:h=1", "--out", "{new}"], 1, "pattern 'nothing*' matches no"),
        (["--model", "resnet999", "--out", "{new}"], 2, "unknown model 'resnet999'"),
        (["--model", "resnet20", "--weights", "{weights}", "--out", "{new}"], 1, "does not fit"),
        (["--dataset", "imagefolder:nowhere", "--out", "{new}"], 1, "no image folder nowhere"),
        (
            [
                "--exclude",
                "nothing*",
                "--weights",
                "{weights}",
                "--model",
                "digits-resnet-small",
                "--out",
                "{new}",
            ],
            1,
            "nothing*",
        ),
    ],
)
def test_refusals(
    tmp_path: Path,
    finished: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.yaml").write_text("strength: 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"model: r\xe9snet\n")
    places = {
        "run": finished,
        "empty": tmp_path / "empty",
        "missing": "mps" if torch.cuda.is_available() else "cuda",
        "new": tmp_path / "new",
        "yaml": tmp_path / "c.yaml",
        "latin": tmp_path / "latin.yaml",
        "weights": weights,
    }
    assert call("compress", *(argument.format(**places) for argument in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.startswith("Usage") or error.count("\n") == 1


@pytest.mark.usefixtures("no_figures", "bfloat16")
def test_other_layout_and_precision(tmp_path: Path, options: list[str], finished: Path) -> None:
    """Channels last and bfloat16 from start to end, interrupted by nothing but a resume."""
    run = tmp_path / "run"
    chosen = ["--channels-last", "on", "--amp", "bf16", "--epochs", "1", "--out", str(run)]
    assert call("--debug", "compress", *options, *chosen) == 0
    content = read_sealed(run / "checkpoint.pt", KEYS)
    weights = content["model"]["layer1.0.conv1.weight"]
    assert weights.is_contiguous(memory_format=torch.channels_last)
    assert rows(run)["pretrained"] == rows(finished)["pretrained"]
    row = rows(run)["soft, refined"]
    model = load_compressed(run / "compressed.safetensors")
    digits = load_dataset("digits", seed=0)
    assert evaluate(model, digits, digits.test)[1] == row["accuracy"]
    before = rows(run)
    assert call("--debug", "compress", "--resume", str(run), "--channels-last", "off") == 0
    assert rows(run) == before


def test_report_tells_the_speed(finished: Path) -> None:
    speed = report(finished)["training"]
    assert speed["seconds"] > 0
    assert speed["images_per_second"] == pytest.approx(3 * 1437 / speed["seconds"])
    assert 0 < speed["coupling_share"] < 1
    assert " images/s; the coupling took " in (finished / "report.txt").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_could_not_begin_leaves_no_folder(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    refusals = (["--weights", "nowhere.pt"], ["--exclude", "nothing*"], ["--device", "cuda:99"])
    for refusal in refusals:
        for place in ([], ["--out", "a/new/folder"], ["--out", "mine"]):
            assert call("compress", *options, *refusal, *place) in (1, 2)
            assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    assert call("compress", *options, "--epochs", "1", "--out", "mine") == 0


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert (run / "tensorboard").is_dir()
        raise OSError("disk full")

    run = tmp_path / "run"
    monkeypatch.setattr("pysoftq.run.finetune.save_checkpoint", fail)
    assert call("compress", *options, "--out", str(run)) == 1
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_neither_taken_nor_removed(
    tmp_path: Path, options: list[str], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "pretrained.safetensors"
    shutil.copyfile(weights, mine)
    assert call("compress", *options, "--weights", str(mine), "--out", str(tmp_path)) == 2
    assert f"{tmp_path} holds pretrained.safetensors, but no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [mine]


def test_one_holds_the_folder_while_others_give_it_up(tmp_path: Path) -> None:
    """The lock's file comes and goes with its folder; it never locks two out of one folder."""
    path, inside = tmp_path / "a" / "run", threading.Lock()

    def work() -> None:
        for _ in range(300):
            with suppress(BusyError), open_run(path):
                assert inside.acquire(blocking=False)
                time.sleep(0)
                inside.release()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert list(tmp_path.rglob(".lock")) == []


class Interrupter:
    """Sends this process a signal when a message of a run begins with a text."""

    def __init__(self, text: str, number: signal.Signals) -> None:
        self.text, self.number = text, number

    def message(self, text: str) -> None:
        if text.startswith(self.text):
            os.kill(os.getpid(), self.number)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


PRETRAINED = [
    *("--model", "digits-resnet-small", "--batch-size", "128"),
    *("--pretrain-epochs", "3", "--epochs", "1", "--codebook-epochs", "1", "--rd-weight", "0.05"),
]


@pytest.mark.usefixtures("no_figures", "fresh_cache")
def test_a_run_can_be_interrupted_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert call("--debug", "compress", *PRETRAINED, "--out", str(whole)) == 0
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    arguments = ["compress", *PRETRAINED, "--out", str(run)]
    left: list[set[str]] = []
    for text, number in (
        ("loading", signal.SIGTERM),
        ("pretraining: epoch 2", signal.SIGINT),
        ("comparing", signal.SIGINT),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(TerminalObserver, "message", Interrupter(text, number).message)
            assert call(*arguments) == 130
        assert f"resume with: pysoftq compress --resume {run}\n" in capsys.readouterr().err
        left.append({path.name for path in run.iterdir() if path.name[0] != "."})
        arguments = ["compress", "--resume", str(run)]
    assert left[0] == {"config.yaml"}
    assert left[1] == {"config.yaml", "pretraining.pt"}
    assert {"pretrained.safetensors", "checkpoint.pt"} < left[2]
    assert "pretraining.pt" not in left[2]
    assert call("--debug", *arguments) == 0
    assert_same_run(run, whole)


@pytest.mark.usefixtures("no_figures", "fresh_cache")
def test_a_refused_resume_of_a_pretraining_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupter = Interrupter("pretraining: epoch 1", signal.SIGINT)
        patch.setattr(TerminalObserver, "message", interrupter.message)
        assert call("compress", *PRETRAINED, "--out", str(run)) == 130
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    config = make_config(read_config(run / "config.yaml"))
    with pytest.raises(ConfigError, match=r"with other options: pretrain_lr$"):
        run_compress(
            config.model_copy(update={"pretrain_lr": 0.3, "n_min": 5}), run, Recorder(), resume=True
        )

    def other_data(name: str, **options: Any) -> Dataset:
        return tiny_digits()

    monkeypatch.setattr("pysoftq.run.setup.load_dataset", other_data)
    with pytest.raises(ConfigError, match="its data or options have changed"):
        run_compress(config.model_copy(update={"n_min": 5}), run, Recorder(), resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.usefixtures("no_figures", "fresh_cache")
def test_a_cache_that_is_no_folder_is_done_without(
    tmp_path: Path, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh_cache.write_text("not a folder")
    run = tmp_path / "run"
    assert call("--debug", "compress", *PRETRAINED, "--out", str(run)) == 0
    text = capsys.readouterr().out
    assert "will not be kept for other runs" in text
    assert text.index("will not be kept") < text.index("pretraining digits")
    assert str(fresh_cache) in text
    assert (run / "pretrained.safetensors").is_file()


def independent_accuracy(model: nn.Module, data: Dataset) -> float:
    """Share of right answers in evaluation mode, all test images in one batch."""
    model.eval()
    with torch.inference_mode():
        answers = model(data.normalize(data.test.pixels)).argmax(1)
    return float((answers == data.test.labels).double().mean())


@pytest.mark.usefixtures("no_figures", "fresh_cache")
def test_baselines_are_of_the_pretrained_network(tmp_path: Path, digits: Dataset) -> None:
    # Trained hard, so that the pretrained network is not the one that is left in the model.
    options = [*PRETRAINED, "--h", "3", "--lr", "0.05"]
    for name in ("trained now", "from the cache"):
        run = tmp_path / name
        assert call("--debug", "compress", *options, "--out", str(run)) == 0
        found = rows(run)
        model = build_model("digits-resnet-small", 10, 1)
        pretrained = load_file(run / "pretrained.safetensors")
        model.load_state_dict(pretrained)
        assert found["pretrained"]["accuracy"] == independent_accuracy(model, digits)
        assert found["pretrained"]["accuracy"] != found["soft"]["accuracy"]
        for bits in (5, 4, 3, 2):
            state = dict(pretrained)
            for layer, theta in coupled_weights(pretrained).items():
                state[layer] = histogram_equalize(theta, bits).weights(theta.shape)
            model.load_state_dict(state)
            assert found[f"HEQ-{bits}"]["accuracy"] == independent_accuracy(model, digits)
    assert_same_run(tmp_path / "trained now", tmp_path / "from the cache")


@pytest.mark.usefixtures("no_figures")
def test_cluster_options_reach_every_output(tmp_path: Path, options: list[str]) -> None:
    run = tmp_path / "run"
    chosen = ["--epochs", "1", "--bits", "5", "--n-min", "30", "--coding", "packed"]
    assert call("--debug", "compress", *options, *chosen, "--out", str(run)) == 0
    info = inspect_compressed(run / "compressed.safetensors")
    compression = report(run)["compression"]
    table = {layer["name"]: layer for layer in compression["layers"]}
    soft = coupled_weights(load_file(run / "soft.safetensors"))
    assert list(soft) == list(table)
    stored = {layer.name: layer for layer in info.layers}
    assert {layer.coding for layer in info.layers} == {"packed"}
    for name, theta in soft.items():
        found = identify(theta, 5)
        refined = refine(found, 30)
        assert table[name]["clusters_before"] == found.K <= 32
        assert stored[name].K == table[name]["clusters"] == refined.K
        assert stored[name].bits == pytest.approx(table[name]["bits"])
    assert any(
        refine(identify(theta, 5), 30).K < refine(identify(theta, 5), 10).K
        for theta in soft.values()
    )
    found_rows = rows(run)
    assert found_rows["soft, 5-bit clusters"]["bits"] == pytest.approx(
        compression["mean_bits_before"]
    )
    row = found_rows["soft, refined"]
    sizes = np.array([theta.numel() for theta in soft.values()])
    bits = np.log2([stored[name].K for name in soft])
    assert row["bits"] == pytest.approx((sizes * bits).sum() / sizes.sum())
    assert row["bits"] == pytest.approx(compression["mean_bits"])


@pytest.mark.usefixtures("no_figures")
def test_events_of_a_resumed_run_hold_each_epoch_once(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: TerminalObserver, state: RunState) -> None:
        if state.step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TerminalObserver, "on_step", interrupt)
        assert call("compress", *options, "--out", str(run)) == 130
    assert call("--debug", "compress", "--resume", str(run)) == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("task_loss")
    assert [event.step for event in scalars] == [0, 1, 2, 3]
    told = [line["task_loss"] for line in metrics(run)]
    assert [event.value for event in scalars] == pytest.approx(told, rel=1e-6)


@pytest.mark.usefixtures("no_figures")
def test_command_line_wins_over_the_file(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("h: 0.2\nbins: 4096\nepochs: 1\n")
    assert call("compress", "--config", "c.yaml", *options, "--epochs", "1") == 0
    config = yaml.safe_load(Path("runs/1/config.yaml").read_text())
    assert (config["h"], config["bins"], config["epochs"]) == (0.05, 4096, 1)
    assert call("compress", "--config", "c.yaml", *options, "--epochs", "1") == 0
    assert rows(Path("runs/1")) == rows(Path("runs/2"))


def test_numbers_of_runs_that_never_began_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1/notes.txt", "2/.lock"):
        file = Path("runs") / name
        file.parent.mkdir(parents=True)
        file.touch()
    taken: list[Path] = []
    monkeypatch.setattr("pysoftq.cli.compress._run", lambda _, path, **__: taken.append(path))
    assert call("compress") == 0
    assert taken == [Path("runs/2")]


def test_a_failed_measurement_leaves_no_file(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with open_run(tmp_path) as folder:
        with pytest.raises(OSError, match="disk full"):
            written_size(folder, fail)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_metrics_refuse_what_is_not_json(tmp_path: Path) -> None:
    line = EpochMetrics(1, 1, math.nan, -5.0, 0.9, 0.8, 0.7, 0.3, 0.01, 5.0, 4.0, {}, 1.0)
    with open_run(tmp_path) as folder:
        for write in (folder.append_metrics, lambda line: folder.write_metrics([line])):
            with pytest.raises(ValueError, match="not JSON compliant"):
                write(line)
        assert not folder.metrics.exists()


def test_the_configuration_of_a_run_is_removed_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, removed = RunFolder(tmp_path), []
    for path in (folder.config, folder.metrics, folder.soft):
        path.touch()
    monkeypatch.setattr(Path, "unlink", lambda path: removed.append(path.name))
    folder.clear()
    assert sorted(removed) == ["config.yaml", "metrics.jsonl", "soft.safetensors"]
    assert removed[-1] == "config.yaml"


def test_n_min_without_refinement_by_count_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("compress", "--n-min", "3", "--out", str(tmp_path / "run")) == 2
    assert "--n-min is for the refinement count" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
