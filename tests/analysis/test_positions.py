from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F

from pysoftq.analysis.landscape import RunStates, read_states
from pysoftq.analysis.positions import EDGES, PositionStudy, study_positions
from pysoftq.analysis.results import load_result
from pysoftq.cli.dynamics import write_positions
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import cpu_state, save_state
from pysoftq.run.config import make_config

H, W = 0.2, 0.5


def run_folder(folder: Path, **options: object) -> Path:
    """What the study reads of a finished run whose weights have moved by half a width inwards."""
    folder.mkdir()
    config = make_config({"model": "digits-resnet-small", "h": H, "w": W, **options})
    config.to_yaml(folder / "config.yaml")
    torch.manual_seed(0)
    pretrained = cpu_state(build_model("digits-resnet-small", 10, in_channels=1))
    save_state(pretrained, folder / "pretrained.safetensors")
    soft = dict(pretrained)
    for name, weights in pretrained.items():
        if weights.dim() >= 2:
            inwards = -torch.sign(weights - weights.mean())
            soft[name] = weights + inwards * 0.5 * W * weights.std(correction=0)
    save_state(soft, folder / "soft.safetensors")
    return folder


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> RunStates:
    return read_states(run_folder(tmp_path_factory.mktemp("runs") / "linear"))


def pooled(values: list[np.ndarray], positions: list[np.ndarray]) -> np.ndarray:
    """Means of values at the positions, bin by bin."""
    value, distance = np.concatenate(values), np.abs(np.concatenate(positions))
    means = np.zeros(len(EDGES))
    for number, (low, high) in enumerate(zip(EDGES, (*EDGES[1:], np.inf), strict=True)):
        there = (distance >= low) & (distance < high)
        means[number] = value[there].mean() if there.any() else 0.0
    return means


def test_forces_are_those_of_all_pairs(states: RunStates) -> None:
    study = study_positions(states, images=len(states.data.train))
    assert (study.potential, study.h, study.w, study.batch) == ("linear", H, W, 64)
    pretrained = study.profiles[0]
    positions, linear, log = [], [], []
    for name in states.coupled:
        theta = states.pretrained[name].double().flatten().numpy()
        width = W * theta.std()
        positions.append((theta - theta.mean()) / theta.std())
        linear.append(H * theta.size**-0.66 * oracle.pair_force(theta, width))
        log.append(oracle.log_force(theta, width))
    # In units of the gradients of each layer, of which the ratio of both potentials is free.
    first, last = (np.concatenate(one) for one in (linear, log))
    factor = np.sqrt((first**2).sum() / (last**2).sum())
    unit = [np.sqrt(square.mean()) for square in mean_squares(states)]
    for potential, forces, scale in (("linear", linear, 1.0), ("log", log, factor)):
        own = [scale * force / one for force, one in zip(forces, unit, strict=True)]
        expected = np.sqrt(pooled([force**2 for force in own], positions))
        assert pretrained.forces[potential] == pytest.approx(expected, rel=0.02, abs=1e-9)
        signed = [np.sign(x) * force for x, force in zip(positions, own, strict=True)]
        inward = pooled(signed, positions)
        largest = np.abs(inward).max()
        assert pretrained.inward[potential] == pytest.approx(inward, abs=0.02 * largest)


def mean_squares(states: RunStates) -> list[np.ndarray]:
    """Squared gradients of each layer, mean over the batches of all training images."""
    model, data = states.model, states.data
    model.load_state_dict(states.pretrained)
    model.eval()
    sums = [torch.zeros_like(states.pretrained[name]) for name in states.coupled]
    batches = list(data.ordered(data.train))
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    count = len(labels) // 64
    parameters = dict(model.named_parameters())
    for number in range(count):
        part = slice(64 * number, 64 * (number + 1))
        loss = F.cross_entropy(model(inputs[part]), labels[part])
        gradients = torch.autograd.grad(loss, [parameters[name] for name in states.coupled])
        for total, gradient in zip(sums, gradients, strict=True):
            total.addcmul_(gradient, gradient)
    return [(total / count).double().flatten().numpy() for total in sums]


def test_displacements_are_in_widths(states: RunStates) -> None:
    study = study_positions(states, images=64)
    there = study.profiles[0].shares > 0
    assert study.displacements[there] == pytest.approx(0.5, rel=1e-4)
    assert study.inward_displacements[there] == pytest.approx(0.5, rel=1e-4)
    assert not study.displacements[~there].any()
    for profile in study.profiles:
        assert profile.shares.sum() == pytest.approx(1)


def test_gradients_are_in_units_of_their_layer(states: RunStates) -> None:
    study = study_positions(states, images=64)
    pretrained = study.profiles[0]
    sizes = pretrained.shares
    # The mean square over all weights is 1 in each layer, thus over all layers too.
    assert float(sizes @ pretrained.gradients**2) == pytest.approx(1, rel=1e-5)


def test_the_potential_of_the_run_has_its_strength(tmp_path: Path) -> None:
    linear = study_positions(read_states(run_folder(tmp_path / "linear")), images=64)
    log = study_positions(
        read_states(run_folder(tmp_path / "log", potential="log", h=60.0)), images=64
    )
    first, second = (study.profiles[0] for study in (linear, log))
    ratio = second.forces["linear"] / np.maximum(first.forces["linear"], 1e-30)
    there = first.forces["linear"] > 0
    assert ratio[there] == pytest.approx(ratio[there][0], rel=1e-6)  # of the same shape
    assert ratio[there][0] != pytest.approx(1, rel=0.05)


def test_a_run_without_coupling_is_refused(tmp_path: Path) -> None:
    states = read_states(run_folder(tmp_path / "none", h=0.0))
    with pytest.raises(ValueError, match="none: the run has h = 0, nothing was coupled"):
        study_positions(states)


def test_a_strength_that_was_chosen_is_that_of_the_report(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "chosen", potential="log", target_bits=1.0)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        "\n".join(line for line in config.splitlines() if not line.startswith("h:")) + "\n"
    )
    with pytest.raises(FileNotFoundError, match=r"report\.json"):
        study_positions(read_states(folder))


def test_saved_and_drawn(states: RunStates, tmp_path: Path) -> None:
    line = write_positions(states.folder, tmp_path)
    assert line == f"written to {tmp_path}: positions.json, positions.png, positions.pdf"
    study = load_result(PositionStudy, tmp_path / "positions.json")
    assert study.run == "linear"
    assert len(study.edges) == len(study.displacements) == len(EDGES)
    content = json.loads((tmp_path / "positions.json").read_text())
    assert [profile["name"] for profile in content["profiles"]] == ["pretrained", "soft"]
