"""``pysoftq runs`` and ``pysoftq evaluate``."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from tiny import Recorder
from torch import nn

from pysoftq import SoftQuantizer, load_compressed, save_compressed
from pysoftq.cli.main import cli
from pysoftq.models.build import build_model
from pysoftq.run.config import make_config
from pysoftq.run.driver import compress
from pysoftq.run.networks import PRETRAINED, REFINED
from pysoftq.run.summary import Summary

SMALL = {
    "model": "digits-resnet-small",
    "epochs": 2,
    "pretrain_epochs": 2,
    "recipe": "paper",
    "batch_size": 200,
    "pretrain_batch_size": 200,
    "split_seed": 5,
    "threads": 1,
}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    root = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSOFTQ_CACHE", str(root / "cache"))
        compress(make_config(SMALL), root / "runs" / "2", Recorder())
    return root / "runs" / "2"


def overviews(folder: Path) -> dict[str, dict]:
    result = invoke("runs", folder, "--json")
    assert result.exit_code == 0, result.output
    return {Path(run["path"]).name: run for run in json.loads(result.stdout)}


# ------------------------------------------------------------------------------------------- runs
def test_a_finished_run_has_the_numbers_of_its_report(finished: Path) -> None:
    run = overviews(finished.parent)["2"]
    summary = Summary.read(finished / "report.json")
    assert run["state"] == "finished"
    assert run["epochs_done"] == run["options"]["epochs"] == 2
    assert run["pretrained"] == summary[PRETRAINED].accuracy
    assert run["compressed"] == summary[REFINED].accuracy
    assert run["bits"] == summary[REFINED].bits
    assert run["bytes_on_disk"] == (finished / "compressed.safetensors").stat().st_size
    assert run["warnings"] == len(summary.warnings)


def test_states_of_runs_in_nested_folders_and_in_order(finished: Path, tmp_path: Path) -> None:
    for name in ("10", "9", "deep/er"):
        shutil.copytree(finished, tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "9" / "report.json").unlink()
    (tmp_path / "10" / "report.json").write_text("{")
    with (tmp_path / "deep/er/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = overviews(tmp_path)
    assert list(found) == ["9", "10", "er"]
    assert [run["state"] for run in found.values()] == ["interrupted", "unreadable", "running"]
    assert overviews(tmp_path)["er"]["state"] == "finished"  # once the lock is free
    result = invoke("runs", tmp_path)
    assert result.exit_code == 0
    assert "interrupted" in result.stdout
    assert f"{tmp_path / '10'}: " in result.stderr


@pytest.mark.parametrize("text", ["", "[1]", "epochs: [", "\0"])
def test_a_damaged_configuration_does_not_hide_the_other_runs(
    finished: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(finished, tmp_path / "good")
    shutil.copytree(finished, tmp_path / "bad")
    (tmp_path / "bad" / "config.yaml").write_text(text)
    (tmp_path / "bad" / "report.json").write_text("[]")
    found = overviews(tmp_path)
    assert found["good"]["state"] == "finished"
    assert found["bad"]["state"] == "unreadable"
    assert found["bad"]["problem"]


def test_a_chosen_strength_is_listed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {**SMALL, "recipe": "best", "target_bits": 2.0, "epochs": 1, "codebook_epochs": 1}
    summary = compress(make_config(given), run, Recorder())
    assert summary.target is not None
    (listed,) = json.loads(invoke("runs", tmp_path, "--json").stdout)
    assert listed["options"]["h"] == summary.target.h
    assert f"{summary.target.h:g}" in invoke("runs", tmp_path).stdout


def test_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("runs").stdout == "no runs in the folder runs\n"
    assert json.loads(invoke("runs", "--json").stdout) == []
    assert invoke("runs", tmp_path).stdout == f"no runs in the folder {tmp_path}\n"
    assert invoke("runs", tmp_path / "nowhere").exit_code == 2


def test_the_list_is_printed_without_torch(finished: Path) -> None:
    program = (
        "import sys\nfrom pysoftq.run.listing import list_runs\nfrom pathlib import Path\n"
        f"assert list_runs(Path({str(finished)!r}))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --------------------------------------------------------------------------------------- evaluate
def test_a_file_in_its_run_is_measured_on_the_data_of_the_run(finished: Path) -> None:
    expected = Summary.read(finished / "report.json")[REFINED]
    file = finished / "compressed.safetensors"
    result = invoke("evaluate", file, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["dataset"] == "digits"
    assert found["accuracy"] == expected.accuracy
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert found["bytes_on_disk"] == expected.bytes_on_disk
    text = invoke("evaluate", file).stdout
    assert f"test accuracy {100 * expected.accuracy:.2f} %" in text


def test_a_file_elsewhere_requires_data(finished: Path, tmp_path: Path) -> None:
    file = shutil.copy(finished / "compressed.safetensors", tmp_path / "net.safetensors")
    result = invoke("evaluate", file)
    assert result.exit_code == 2
    assert "missing option --dataset" in result.output
    text = " ".join(invoke("evaluate", "--help").output.split())
    assert "moved. [default: that of the run]" in text
    assert "test images. [default: that of the run]" in text
    result = invoke("evaluate", file, "--dataset", "digits", "--split-seed", 5, "--json")
    expected = Summary.read(finished / "report.json")[REFINED]
    assert json.loads(result.stdout)["accuracy"] == expected.accuracy


def test_other_images_are_normalised_as_in_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for half in ("train", "test"):
        for label in "01":
            (tmp_path / half / label).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / half / label / f"{number}.png")
    torch.manual_seed(0)
    file, network = tmp_path / "net.safetensors", build_model("digits-resnet-small", 2, 3)
    save_compressed(network, file, metadata={"mean": [0.9] * 3, "std": [0.1] * 3})
    data = ("--dataset", f"imagefolder:{tmp_path}", "--json")
    same, other = ("--mean", "0.9", "--std", "0.1"), ("--mean", "0.5", "--std", "0.2")
    results = [invoke("evaluate", file, *data, *more) for more in ((), same, other)]
    losses = [json.loads(result.stdout)["loss"] for result in results]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
def test_the_folder_of_a_run_stands_for_its_file(
    finished: Path, tmp_path: Path, command: str
) -> None:
    file = invoke(command, finished / "compressed.safetensors", "--json")
    folder = invoke(command, finished, "--json")
    assert folder.exit_code == 0, folder.output
    assert folder.stdout == file.stdout
    empty = invoke(command, tmp_path)
    assert empty.exit_code == 2
    assert "holds no compressed.safetensors" in empty.output


def test_the_exported_network_is_that_of_the_folder(finished: Path, tmp_path: Path) -> None:
    result = invoke("export", finished, "--state-dict", tmp_path / "plain.pt")
    assert result.exit_code == 0, result.output
    state = torch.load(tmp_path / "plain.pt")
    expected = load_compressed(finished / "compressed.safetensors").state_dict()
    assert all(state[name].equal(value) for name, value in expected.items())


def test_inputs_of_another_kind_are_refused(finished: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some words " * 2000)
    result = invoke("evaluate", finished / "compressed.safetensors", "--dataset", f"text:{text}")
    assert result.exit_code == 1
    assert "takes inputs of float32 [1, 8, 8]" in str(result.exception)


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    SoftQuantizer(network).finalize()
    save_compressed(network, tmp_path / "own.safetensors")
    given = ("evaluate", "own.safetensors", "--dataset", "digits")
    assert invoke(*given).exit_code == 1  # the file does not say how to build it
    result = invoke(*given, "--model", "my_net:make", "--json")
    assert result.exit_code == 0, result.output
    assert 0 <= json.loads(result.stdout)["accuracy"] < 0.5


def test_more_classes_than_the_network_has(tmp_path: Path) -> None:
    network = build_model("digits-resnet-small", num_classes=3, in_channels=1)
    save_compressed(network, tmp_path / "three.safetensors")
    result = invoke("evaluate", tmp_path / "three.safetensors", "--dataset", "digits")
    assert result.exit_code == 1
    assert "predicts 3 classes, digits has 10" in str(result.exception)
