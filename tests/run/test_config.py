"""Options: the paper's defaults, one source for YAML and command line, errors that name the key."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pysoftq.cli.compress import compress
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.errors import ConfigError
from pysoftq.run.config import (
    DATASET_DEFAULTS,
    CompressConfig,
    changed_options,
    command_line,
    make_config,
    new_config,
    read_config,
)

PAPER = {
    "w": 0.5,
    "alpha": 0.66,
    "bins": 16384,
    "fraction_start": 0.3,
    "bits": 7,
    "n_min": 10,
    "refinement": "count",
    "codebook_epochs": 0,
    "epochs": 30,
    "batch_size": 128,
    "lr": 0.001,
    "momentum": 0.9,
    "model": "resnet20",
}


def test_the_recipe_of_the_paper_has_its_options() -> None:
    config = make_config({"dataset": "cifar10", "recipe": "paper"}).model_dump()
    assert {name: config[name] for name in PAPER} == PAPER


def test_data_sets_may_have_defaults_of_their_own() -> None:
    digits = make_config().model_dump()
    assert digits["dataset"] == "digits"
    assert DATASET_DEFAULTS["digits"].items() <= digits.items()
    assert make_config({"epochs": 3}).epochs == 3


def test_the_log_potential_has_a_strength_of_its_own() -> None:
    given: dict[str, Any]
    for given in ({}, {"dataset": "digits"}, {"dataset": "pydoc"}, {"dataset": "cifar10"}):
        strength = 8 if given.get("dataset") == "pydoc" else 100
        assert make_config({**given, "potential": "log"}).h == strength
        assert make_config({**given, "potential": "log"}, {"h": 0.2}).h == 0.2
        target = make_config({**given, "potential": "log", "max_drop": 1.0})
        assert target.chooses_h
        assert not make_config({**given, "potential": "log", "max_drop": 1.0, "h": 100}).chooses_h
    assert make_config({"potential": "linear"}).h == 0.2
    assert (ClusteringConfig(potential="log").h, ClusteringConfig().h) == (100, 0.01)
    assert "h" not in ClusteringConfig(potential="log").model_fields_set


def test_later_sources_win() -> None:
    config = make_config({"h": 0.1, "w": 0.2, "seed": 5}, {"w": 0.3})
    assert (config.h, config.w, config.seed) == (0.1, 0.3, 5)


def test_a_data_set_given_later_brings_its_own_defaults() -> None:
    assert make_config({"dataset": "digits"}, {"dataset": "cifar10"}).model == "resnet20"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("h", -0.1),
        ("h", float("nan")),
        ("w", 0),
        ("w", "wide"),
        ("bins", 0),
        ("bins", 2.5),
        ("method", "direct"),
        ("fraction_start", 0),
        ("fraction_start", 1.1),
        ("epochs", 0),
        ("momentum", 1),
        ("lr", 0),
        ("lr", float("inf")),
        ("seed", -1),
        ("alpha", 10.5),
        ("alpha", -11),
        ("potential", "cubic"),
        ("threads", 1025),
        ("device", "tpu"),
        ("bits", 0),
        ("dataset", "mnist"),
        ("dataset", "imagefolder"),
        ("dataset", "digits:folder"),
        ("dataset", "imagefolder:"),
        ("dataset", "digits:"),
        ("mean", "0.1,x"),
        ("std", "0.1,0"),
        ("include", 3),
    ],
)
def test_wrong_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"option '{key}") as caught:
        make_config({key: value})
    assert "\n" not in str(caught.value)


def test_unknown_options_are_named_and_all_problems_told() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"strength": 1, "h": -1})
    assert "unknown option 'strength'" in str(caught.value)
    assert "option 'h'" in str(caught.value)


@pytest.mark.parametrize("value", ["0.1,0.2,0.3", [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)])
def test_channels_come_as_text_or_list(value: Any) -> None:
    assert make_config({"mean": value}).mean == (0.1, 0.2, 0.3)
    assert make_config({"std": 0.5}).std == (0.5,)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = make_config({"h": 0.03, "include": ("conv*",), "mean": "0.5", "weights": "w.pt"})
    config.to_yaml(tmp_path / "config.yaml")
    assert make_config(read_config(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("name", ["amp", "channels_last", "graph"])
def test_switches_are_words_in_yaml_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{name}: off\n")  # which YAML takes for a truth value
    config = make_config(read_config(path))
    assert getattr(config, name) == "off"
    config.to_yaml(path)
    assert read_config(path)[name] == "off"
    assert make_config({"graph": True}).graph == "on"
    with pytest.raises(ConfigError, match=r"option 'amp': .*got 'on'"):
        make_config({"amp": "on"})


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_by_name(name: str) -> None:
    assert make_config({"device": name}).device == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"option 'device': .*expected auto, cpu, cuda, cuda:N or"
    ):
        make_config({"device": name})


def test_yaml_file_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert read_config(tmp_path / "c.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h: strong\n", "option 'h'"),
        ("H: 0.1\n", "unknown option 'H'"),
        ("1: 2\n", "1"),
        ("- h\n", "found list"),
        ("h: [\n", "is no YAML"),
        ("!!python/object/apply:os.getcwd []\n", "is no YAML"),
        ("!!map h\n", "is no YAML"),
        ("h: 2001-99-99\n", "is no YAML"),
        ("h: 0.1\nw: 0.2\nh: 0.3\n", "key 'h' is given twice"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_other_bytes_than_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes("model: résnet\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml is no YAML: 'utf-8' codec"):
        read_config(path)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagefolder:a/b:c"])
def test_every_data_set_is_known(name: str) -> None:
    assert make_config({"dataset": name}).dataset == name


def test_changed_options_are_those_that_shape_the_training() -> None:
    saved = make_config({"h": 0.1}).model_dump(mode="json")
    now = make_config({"h": 0.2, "w": 0.4, "n_min": 3, "threads": 1})
    assert changed_options(saved, now) == ["h", "w"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("fc.*",), "expected PATTERN:h=H,w=W, got 'fc"),
        (("fc:h",), "expected PATTERN:h=H,w=W"),
        ((":h=1",), "expected PATTERN:h=H,w=W"),
        (("fc:h=strong",), r"option 'override\.fc\.h'"),
        (("fc:g=1",), "expected h, w or both for 'fc'"),
        (("fc:h=1", "fc:w=1"), "expected each pattern once"),
    ],
)
def test_wrong_overrides_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"override": given})


def test_one_pattern_needs_no_list() -> None:
    assert make_config({"include": "fc.*"}).include == ("fc.*",)


def test_every_option_has_help_and_a_group() -> None:
    for name, field in CompressConfig.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["group"], name


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"h": 0.05, "augment": False, "compile": True, "amp": "bf16", "seed": 7},
        {"dataset": "imagefolder:a b", "mean": "0.1,0.2,0.3", "std": "1,1,1", "epochs": 3},
        {"include": ("a*", "b c"), "weights": "dir/x.pt", "n_min": 10, "recipe": "paper"},
        {"override": {"fc.*": {"h": 0.25, "w": 1e-9}, "a b:c": {"w": 3}}},
        {"max_drop": 1.0},
        {"max_drop": 1.0, "epochs": 7},
        {"max_drop": 1.0, "codebook_epochs": 5},
        {"max_drop": 0.5, "target_bits": 2.0},
        {"target_size": 5000, "epochs": 7},
        {"codebook_epochs": 0},
        {"refinement": "count"},
        {"potential": "log"},
        {"potential": "log", "h": 0.2},
        {"potential": "log", "target_bits": 1.0},
        {"potential": "log", "target_bits": 1.0, "h": 100.0},
        {"dataset": "imagefolder:images", "target_bits": 1.0},
        {"dataset": "imagefolder:images", "target_bits": 1.0, "h": 0.01},
    ],
)
def test_command_line_gives_the_same_options(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(given)
    words = shlex.split(command_line(config))
    assert words[:2] == ["pysoftq", "compress"]
    found = []
    monkeypatch.setattr("pysoftq.cli.compress._run", lambda config, *_, **__: found.append(config))
    result = CliRunner().invoke(compress, words[2:])
    assert result.exit_code == 0, result.output
    assert found == [config]
    assert found[0].chooses_h == config.chooses_h


def test_a_new_run_ends_somewhere() -> None:
    assert new_config({"epochs": 7}) == make_config({"epochs": 7, "max_drop": 1.0})
    assert make_config({}).target is None
    given: dict[str, Any]
    for given in (
        {"rd_weight": 0.05},
        {"target_bits": 2.0},
        {"target_size": "8kB"},
        {"recipe": "paper"},
        {"refinement": "count"},
        {"codebook_epochs": 0},
    ):
        assert new_config(given) == make_config(given)
    assert new_config({"recipe": "best"}) == new_config({})


def test_an_error_of_a_validator_is_told_in_its_own_words() -> None:
    with pytest.raises(ConfigError) as error:
        make_config({"granularity": "row"})
    assert str(error.value).startswith("option 'granularity': granularity must be")
