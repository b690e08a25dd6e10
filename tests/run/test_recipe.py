"""Recipes through the command line: what is written, reported, and gone on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny import Recorder, tiny_digits, tiny_training

from pysoftq.artifact import load_compressed
from pysoftq.clusters.binning import identify
from pysoftq.clusters.merging import merge
from pysoftq.clusters.refinement import refine
from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.images import Dataset
from pysoftq.errors import ConfigError, Interrupted
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import coupled_weights, load_weights
from pysoftq.run.config import CompressConfig, command_line, make_config, new_config
from pysoftq.run.driver import compress
from pysoftq.run.evaluation import evaluate
from pysoftq.run.presets import RECIPES
from pysoftq.run.summary import Summary

TRAINED = "soft, refined, before training"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_digits()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CompressConfig:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "digits.pt"
    torch.save(build_model("digits-resnet-small", 10, 1).state_dict(), weights)
    return make_config(
        {
            "recipe": "best",
            "model": "digits-resnet-small",
            "weights": weights,
            "h": 0.05,
            "lr": 0.02,
            "epochs": 2,
            "batch_size": 32,
        }
    )


def run(config: CompressConfig, path: Path, data: Dataset, *, resume: bool = False) -> Summary:
    return compress(config, path, Recorder(), resume=resume, data=data)


@pytest.fixture(scope="module")
def finished(
    config: CompressConfig, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("runs") / "best"
    run(config, path, data)
    return path


def test_the_file_is_that_of_the_recipe(finished: Path, data: Dataset) -> None:
    summary = Summary.read(finished / "report.json")
    names = [row.name for row in summary.networks]
    stages = ["soft", "soft, clusters", "soft, refined as in the paper", TRAINED, "soft, refined"]
    assert names[:6] == ["pretrained", *stages]
    before, after = summary[TRAINED], summary["soft, refined"]
    assert after.bits is not None
    assert before.bits is not None
    assert 0 < after.bits <= before.bits < summary.layers.mean_bits_before
    assert after.entropy_bits != before.entropy_bits  # weights have moved
    assert after.bits == pytest.approx(summary.layers.mean_bits)
    assert after.entropy_bits == pytest.approx(summary.layers.entropy_bits)

    model = load_compressed(finished / "compressed.safetensors")
    assert isinstance(model, torch.nn.Module)
    assert evaluate(model, data, data.test)[1] == after.accuracy
    soft = build_model("digits-resnet-small", 10, 1)
    soft.load_state_dict(load_weights(finished / "soft.safetensors"))
    assert evaluate(model, data, data.train)[0] < evaluate(soft, data, data.train)[0]
    for layer in summary.layers.layers:
        assert model.get_parameter(layer.name).unique().numel() == layer.clusters


def test_a_paper_run_is_refined_anew(
    finished: Path, config: CompressConfig, data: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    paper = make_config(config.model_dump(mode="json"), {"recipe": "paper"})
    assert (paper.refinement, paper.codebook_epochs) == ("count", 0)
    summary = run(paper, path, data)
    assert TRAINED not in [row.name for row in summary.networks]
    for name, theta in coupled_weights(load_weights(path / "soft.safetensors")).items():
        layer = next(layer for layer in summary.layers.layers if layer.name == name)
        assert layer.clusters == refine(identify(theta), 1).K  # n_min of the digits
    run(make_config(paper.model_dump(mode="json"), {"recipe": "best"}), path, data, resume=True)
    for name in ("soft.safetensors", "compressed.safetensors"):
        assert (path / name).read_bytes() == (finished / name).read_bytes()


def test_a_run_stopped_among_the_clusters_goes_on(
    finished: Path, config: CompressConfig, data: Dataset, tmp_path: Path
) -> None:
    class Signalling(Recorder):
        def message(self, text: str) -> None:
            if text.startswith("clusters: epoch 1"):
                os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        compress(config, path, Signalling(), data=data)
    assert not (path / "compressed.safetensors").exists()
    assert (path / "checkpoint.pt").is_file()
    run(config, path, data, resume=True)
    for name in ("soft.safetensors", "compressed.safetensors"):
        assert (path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("refinement", ["levels", "entropy"])
def test_one_weight_of_noise_to_signal_for_all_layers(refinement: str) -> None:
    softq = tiny_training(make_config({"h": 0.01})).softq
    sizes = torch.tensor([float(layer.size) for layer in softq.layers]).double()
    typical = float((sizes * sizes).sum() / sizes.sum())
    found = softq.clusters()
    refined = softq.refine(found, refinement=refinement, rd_weight=0.02)
    for layer in softq.layers:
        weight = 0.02 * float(layer.parameter.detach().var(correction=0)) * layer.size / typical
        wanted = merge(found[layer.name], weight, refinement)  # type: ignore[arg-type]
        assert torch.equal(refined[layer.name].counts, wanted.counts)
        assert softq.rd_weights(0.02)[layer.name] == pytest.approx(weight, rel=1e-5)
    report = softq.finalize(refinement=refinement, rd_weight=0.02)
    assert [layer.clusters for layer in report.layers] == [c.K for c in refined.values()]
    assert not any(layer.note for layer in report.layers)
    with pytest.raises(
        ValueError, match="`refinement` must be one of count, levels, packed, entropy, got 'size'"
    ):
        softq.finalize(refinement="size")
    with pytest.raises(ValueError, match="`rd_weight` must be finite and >= 0"):
        softq.finalize(refinement=refinement, rd_weight=-1.0)


def test_clustering_options_reach_the_model() -> None:
    model = build_model("digits-resnet-small", 10, 1)
    options = ClusteringConfig(refinement="levels", rd_weight=0.1)
    wanted = SoftQuantizer(model).clusters()
    report = prepare(model, options).finalize(**options.cluster_options)
    assert 1 < report.mean_bits < report.mean_bits_before
    assert [layer.clusters_before for layer in report.layers] == [c.K for c in wanted.values()]


def test_a_recipe_is_a_layer_of_options() -> None:
    best = make_config({"recipe": "best"})
    assert {name: getattr(best, name) for name in RECIPES["best"]} == RECIPES["best"]
    assert make_config({}) == best
    own = make_config({"recipe": "best", "codebook_epochs": 1})
    assert (own.codebook_epochs, own.refinement) == (1, best.refinement)
    assert make_config({"refinement": "count"}, {"recipe": "best"}).refinement == best.refinement
    assert make_config({"recipe": "best"}, {"refinement": "count"}).refinement == "count"
    assert make_config(best.model_dump(), {"recipe": "paper"}).codebook_epochs == 0
    assert command_line(best) == "pysoftq compress --rd-weight 0.05"
    assert command_line(new_config({})) == "pysoftq compress"
    assert command_line(own) == "pysoftq compress --rd-weight 0.05 --codebook-epochs 1"
    paper = make_config({"recipe": "paper", "h": 0.1})
    assert command_line(paper) == "pysoftq compress --recipe paper --h 0.1"
    for recipe in RECIPES:
        assert make_config({"recipe": recipe}).model_dump(exclude={"recipe", *RECIPES["best"]}) == (
            make_config({}).model_dump(exclude={"recipe", *RECIPES["best"]})
        )


def test_what_cannot_be_merged_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"option 'refinement'.*2\^11 bins at most"):
        make_config({"recipe": "best", "bits": 12})
    assert make_config({"recipe": "paper", "bits": 12}).bits == 12
    for name, value in (("refinement", "size"), ("rd_weight", -1), ("codebook_epochs", -1)):
        with pytest.raises(ConfigError, match=f"option '{name}'"):
            make_config({name: value})
    with pytest.raises(ConfigError, match="option 'recipe'"):
        make_config({"recipe": "bset"})
