"""One run in several processes, as torchrun starts them: results, files, failures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launch import launch
from safetensors.torch import load_file
from tiny import Recorder
from together import OPTIONS, PAPER, call, run_together, trained

from pysoftq.artifact import load_compressed
from pysoftq.data.batching import Share
from pysoftq.errors import ConfigError
from pysoftq.models.build import build_model
from pysoftq.run.config import make_config
from pysoftq.run.driver import compress
from pysoftq.run.front import Front
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.processes import ALONE, Processes
from pysoftq.run.setup import check_processes

WORLD = 2
TARGET_RUNS = ("target", "target stopped", "target resumed")

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo here"
)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 64, 65])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_parts_make_up_the_batch(size: int, world: int) -> None:
    parts = [Share(rank, world).part(slice(5, 5 + size)) for rank in range(world)]
    assert math.fsum(part.weight for part in parts) == pytest.approx(1)
    counted = [
        n for part in parts if part.counted for n in range(part.place.start, part.place.stop)
    ]
    assert counted == list(range(5, 5 + size))
    sizes = [part.place.stop - part.place.start for part in parts]
    assert {part.least for part in parts} == {min(sizes)}
    assert 0 < max(sizes) <= min(sizes) + 1


def test_a_launcher_passes_on_a_signal_that_has_come_already() -> None:
    stop = StopRequest(grace=60)
    stop.on_signal(2, None)
    stop.on_signal(2, None)
    assert stop.asked
    at_once = StopRequest()
    at_once.on_signal(2, None)
    with pytest.raises(KeyboardInterrupt):
        at_once.on_signal(2, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "mps"}, "option 'device' is mps for 4 processes"),
        ({"device": "cuda:1"}, "option 'device' is cuda:1 for 4 processes"),
        ({"graph": "on"}, "option 'graph' is on for 4 processes"),
        ({"compile": True}, "option 'compile' is True for 4 processes"),
        ({"shard": True, "recipe": "paper", "channels_last": "on"}, "option 'channels_last' is on"),
    ],
)
def test_options_of_one_process_are_refused_in_several(
    options: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(options)
    check_processes(config, ALONE)
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    with pytest.raises(ConfigError, match=told):
        check_processes(config, Processes(1, 4))


def test_variables_of_other_launchers_are_ignored(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep may run in a job that sets them; a run of its own has one process."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    given = {"model": "digits-resnet-small", "weights": weights, "epochs": 1, "recipe": "paper"}
    compress(make_config(given), tmp_path / "run", Recorder())
    assert (tmp_path / "run" / "compressed.safetensors").is_file()
    assert call("compress", "--resume", str(tmp_path / "nothing"))[0] == 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "digits.pt"
    torch.save(build_model("digits-resnet-small", 10, 1).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def alone(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pysoftq.cli.compress._draw", lambda path: [path])
        code, _, err = call(
            *("compress", *OPTIONS, *PAPER, "--weights", str(weights), "--out", str(folder / "run"))
        )
    assert code == 0, err
    return folder / "run"


def test_one_process_of_torchrun_is_as_without_it(
    alone: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", **sizes}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("pysoftq.cli.compress._draw", lambda path: [path])
    run = tmp_path / "run"
    given = ["compress", *OPTIONS, *PAPER, "--weights", str(weights), "--out", str(run)]
    assert call(*given)[0] == 0
    for name in ("soft.safetensors", "compressed.safetensors", "pretrained.safetensors"):
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.fixture(scope="module")
def together(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs in two processes."""
    folder = tmp_path_factory.mktemp("together")
    launch(WORLD, run_together, folder, str(weights), PYSOFTQ_CACHE=str(folder / "cache"))
    return folder


@pytest.fixture(scope="module")
def seen(together: Path) -> list[dict[str, Any]]:
    """What each process has seen."""
    return [torch.load(together / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.long
@needs_gloo
def test_steps_are_those_of_the_whole_batch(seen: list[dict[str, Any]]) -> None:
    weights, found = trained(ALONE)
    for process in seen:
        own, own_found = process["trained"]
        assert own_found == pytest.approx(found, rel=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(own[name], value, rtol=1e-9, atol=1e-12)
            assert torch.equal(own[name], seen[0]["trained"][0][name]), name


@needs_gloo
def test_a_failure_reaches_all_processes(seen: list[dict[str, Any]]) -> None:
    first, second = (process["failures"] for process in seen)
    other = "PeerError: process {0} of the run has failed: no data on {0}"
    assert first == ["OSError: no data on 0", other.format(1)]
    assert second == [other.format(0), "OSError: no data on 1"]


@needs_gloo
def test_a_refusal_is_one_line_and_nothing_is_written(
    together: Path, seen: list[dict[str, Any]]
) -> None:
    first, second = (process["refused"] for process in seen)
    assert first[0] == second[0] == 2
    assert "Error: option 'compile' is True for 2 processes" in first[2]
    assert second[1:] == ("", "")
    assert not (together / "refused").exists()


@needs_gloo
def test_a_run_is_that_of_one_process(
    together: Path, alone: Path, seen: list[dict[str, Any]]
) -> None:
    for one, several in zip(metrics(alone), metrics(together / "paper"), strict=True):
        for name in ("epoch", "step", "fraction", "learning_rate"):
            assert one[name] == several[name]
        assert several["task_loss"] == pytest.approx(one["task_loss"], rel=1e-3)
        assert several["coupling_energy"] == pytest.approx(one["coupling_energy"], rel=0.02)
    one, several = (load_file(run / "soft.safetensors") for run in (alone, together / "paper"))
    for name, value in one.items():
        assert (several[name] - value).abs().float().mean() < 0.002, name
    assert load_compressed(together / "paper" / "compressed.safetensors")


@needs_gloo
def test_the_first_process_reports_and_all_have_the_code(seen: list[dict[str, Any]]) -> None:
    (code, out, err), second = (process["paper"] for process in seen)
    assert (code, second) == (3, (3, "", ""))  # untrained weights are not worth much
    assert "2 processes, each with a part of every batch and all weights" in out
    assert out.count("epoch   1") == 1
    assert err.count("warning: ") == len(set(err.splitlines()))


@needs_gloo
def test_sharded_weights_give_the_same_run(together: Path, seen: list[dict[str, Any]]) -> None:
    assert [process["stopped"][0] for process in seen] == [130, 130]
    assert "-m pysoftq compress --resume" in seen[0]["stopped"][2]
    assert [process["resumed"][0] for process in seen] == [0, 0]
    assert "resuming after step 3 of" in seen[0]["resumed"][1]
    for name in ("soft.safetensors", "compressed.safetensors"):
        paper, sharded = (load_file(together / run / name) for run in ("paper", "sharded"))
        assert paper.keys() == sharded.keys()
        for tensor, value in paper.items():
            assert torch.equal(sharded[tensor], value), tensor


@needs_gloo
def test_one_process_resumes_what_several_have_begun(
    together: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysoftq.cli.compress._draw", lambda path: [path])
    report = together / "sharded" / "report.json"
    before = json.loads(report.read_text(encoding="utf-8"))["networks"]
    assert call("compress", "--resume", str(together / "sharded"))[0] == 0
    after = json.loads(report.read_text(encoding="utf-8"))["networks"]
    assert after == before


@needs_gloo
def test_codebooks_are_trained_together(together: Path, seen: list[dict[str, Any]]) -> None:
    for run in ("best", "best sharded"):
        assert [process[run][0] for process in seen] == [0, 0], seen[0][run][2]
        assert "clusters: epoch 1 of 1" in seen[0][run][1]
    assert len(list((together / "cache").glob("*-2-processes.safetensors"))) == 1
    losses = {
        row["name"]: row["loss"]
        for row in json.loads((together / "best" / "report.json").read_text())["networks"]
    }
    assert losses["soft, refined"] < losses["soft, refined, before training"]
    whole, sharded = (
        load_file(together / run / "compressed.safetensors") for run in ("best", "best sharded")
    )
    assert whole.keys() == sharded.keys()
    for tensor, value in whole.items():
        assert torch.equal(sharded[tensor], value), tensor


@needs_gloo
def test_a_target_is_reached_together(together: Path, seen: list[dict[str, Any]]) -> None:
    outcomes = [[process[name][0] for process in seen] for name in TARGET_RUNS]
    assert outcomes == [[3, 3], [130, 130], [3, 3]]  # untrained: accuracy does not stay
    out = seen[0]["target"][1]
    assert "target: at most 2 bits per weight, at most 0 points lost on validation data: " in out
    assert seen[1]["target"][1:] == ("", "")
    reports = [
        json.loads((together / run / "report.json").read_text())
        for run in ("target", "target sharded")
    ]
    assert 1.94 <= reports[0]["target"]["rungs"][0]["bits"] <= 2
    for name in ("target", "networks", "steps"):
        assert reports[1][name] == reports[0][name]
    for name in ("soft", "compressed"):
        whole, sharded = (
            (together / run / f"{name}.safetensors").read_bytes()
            for run in ("target", "target sharded")
        )
        assert sharded == whole, name


def test_a_front_is_made_together(together: Path, seen: list[dict[str, Any]]) -> None:
    for run in ("front", "front sharded"):
        assert [process[run][0] for process in seen] == [0, 0]
        assert seen[1][run][1:] == ("", "")
    front = Front.read(together / "front" / "front.json")
    assert [rung.target_bytes for rung in front.rungs] == [6000, 4000]
    for rung in front.rungs:
        assert rung.test is not None
        whole, sharded = (together / run / rung.file for run in ("front", "front sharded"))
        assert whole.stat().st_size == rung.bytes <= rung.target_bytes
        assert sharded.read_bytes() == whole.read_bytes()
    assert Front.read(together / "front sharded" / "front.json") == front


@needs_gloo
def test_processes_with_different_networks_end_with_an_error(seen: list[dict[str, Any]]) -> None:
    told = "the processes differ in bytes_predicted: 100 on rank 0, 101 on rank 1"
    assert [process["different"] for process in seen] == [told, told]
