"""The options of a soft quantization as one object, overrides, and what became of each tensor."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from networks import SpecialTensor
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pysoftq import ClusteringConfig, SoftQuantizer, prepare, validate_clustering
from pysoftq.coupling.report import CompressionReport
from pysoftq.errors import ConfigError
from pysoftq.run.config import make_config


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Sequential(nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 20))
        self.head = nn.Linear(20, 5)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


PATTERNS = ("include", "exclude", "override")  # None and empty are alike


def scales(softq: SoftQuantizer) -> dict[str, tuple[float, float]]:
    """h and w of each layer, back from its frozen strength and width."""
    return {
        layer.name: (
            pytest.approx(layer.strength * layer.size**softq.alpha),
            pytest.approx(layer.width / layer.sigma),
        )
        for layer in softq.layers
    }


def rules(softq: SoftQuantizer) -> dict[str, tuple[str, str]]:
    return {tensor.name: (tensor.status, tensor.rule) for tensor in softq.tensors()}


def test_defaults_are_those_of_the_command() -> None:
    command = make_config({"dataset": "cifar10"})
    config = ClusteringConfig()
    assert command.rd_weight > config.rd_weight  # training follows, which regains what it costs
    for name in ClusteringConfig.model_fields.keys() - {"rd_weight"}:
        assert getattr(config, name) == getattr(command, name), name


def test_options_of_single_arguments_have_the_same_defaults() -> None:
    arguments = {
        **inspect.signature(SoftQuantizer).parameters,
        **inspect.signature(SoftQuantizer.finalize).parameters,
    }
    defaults = ClusteringConfig().model_dump()
    told = {name for name in arguments if name in defaults and name not in PATTERNS}
    assert told >= {"h", "w", "alpha", "bins", "method", "granularity", "seed", "bits", "n_min"}
    # Both are None there: n_min applies to one refinement only, and h depends on the potential.
    for name in told - {"n_min", "h"}:
        assert arguments[name].default == defaults[name], name


def test_options_travel_as_a_mapping_and_as_yaml(tmp_path: Path) -> None:
    config = ClusteringConfig(
        h=0.2, exclude="head*", override={"body.*": {"w": 0.3}, "c*": {"h": 0}}, n_min=0
    )
    assert ClusteringConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.to_yaml(tmp_path / "c.yaml")
    again = ClusteringConfig.from_yaml(tmp_path / "c.yaml")
    assert again == config
    assert list(again.override) == ["body.*", "c*"]  # the order decides
    assert again.exclude == ("head*",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hh": 1}, "unknown option 'hh'; did you mean 'h'"),
        ({"epochs": 3}, "unknown option 'epochs'"),
        ({"h": -1}, "option 'h': .* greater than or equal to 0, got -1"),
        ({"w": "wide"}, "option 'w'"),
        ({"method": "sort"}, "option 'method'"),
        ({"n_min": -1}, "option 'n_min'"),
        ({"override": {"a": {"h": -1}}}, "option 'override': .*expected h of 0 or more"),
        ({"override": {"a": {"w": 0}}}, "option 'override': .*w above 0 for 'a'"),
        ({"override": {"a": {"w": float("nan")}}}, r"option 'override\.a\.w': .*finite"),
        ({"override": {"a": {"alpha": 1}}}, "option 'override': .*expected h, w or both for 'a'"),
        ({"override": {"a": {}}}, "option 'override': .*expected h, w or both for 'a'"),
        ({"override": {"a": 0.1}}, r"option 'override\.a'"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusteringConfig.from_dict(options)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("strength: 1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: unknown option 'strength'"):
        ClusteringConfig.from_yaml(path)


def test_prepare_is_the_quantizer_of_these_options(net: Net) -> None:
    config = ClusteringConfig(h=0.2, w=0.4, alpha=0.5, bins=512, seed=3, include=("body.*",))
    softq = prepare(net, config)
    by_hand = SoftQuantizer(net, 0.2, 0.4, alpha=0.5, bins=512, seed=3, include="body.*")
    assert softq.state_dict() == by_hand.state_dict()


def test_prepare_takes_a_mapping(net: Net) -> None:
    assert prepare(net, {"h": 0.2}).state_dict() == SoftQuantizer(net, h=0.2).state_dict()
    with pytest.raises(TypeError, match="a ClusteringConfig or a mapping, got float"):
        prepare(net, 0.2)  # type: ignore[arg-type]


def test_the_fraction_rises_as_in_the_driver() -> None:
    config = ClusteringConfig(fraction_start=0.2, fraction_ramp=0.5)
    assert [config.fraction(epoch, 8) for epoch in range(8)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    )
    assert config.fraction(0, 1) == 1
    slow = config.model_copy(update={"fraction_ramp": 1.0})
    assert [slow.fraction(step, 3) for step in range(3)] == pytest.approx([0.2, 0.6, 1])
    assert config.model_copy(update={"fraction_ramp": 0.0}).fraction(0, 9) == 1


def test_override_of_strength_and_width(net: Net) -> None:
    override = {"body.0.*": {"h": 0.5}, "body.*": {"w": 0.2}, "head.weight": {"h": 0, "w": 1}}
    softq = SoftQuantizer(net, 0.1, 0.4, override=override)
    assert scales(softq) == {
        "conv.weight": (0.1, 0.4),
        "body.0.weight": (0.5, 0.4),  # the first pattern decides alone
        "body.2.weight": (0.1, 0.2),
        "head.weight": (0, 1),
    }
    assert rules(softq)["conv.weight"] == ("coupled", "h = 0.1, w = 0.4")
    assert rules(softq)["body.0.weight"] == ("coupled", "override 'body.0.*': h = 0.5, w = 0.4")
    assert rules(softq)["body.2.weight"] == ("coupled", "override 'body.*': h = 0.1, w = 0.2")
    softq = SoftQuantizer(net, 100.0, 0.5, potential="log")
    assert rules(softq)["conv.weight"] == ("coupled", "h = 100, w = 0.5, log potential")


def test_the_force_is_that_of_a_layer_with_these_scales(net: Net) -> None:
    def force(softq: SoftQuantizer) -> dict[str, torch.Tensor]:
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        softq.add_force_()
        return {layer.name: layer.parameter.grad.clone() for layer in softq.layers}

    mixed = force(SoftQuantizer(net, 0, 0.4, override={"body.2*": {"h": 0.3, "w": 0.2}}))
    alone = force(SoftQuantizer(net, 0.3, 0.2))
    assert mixed["body.2.weight"].any()
    assert torch.equal(mixed["body.2.weight"], alone["body.2.weight"])
    assert not mixed["conv.weight"].any()


def test_a_strength_of_zero_leaves_gradients_alone_bit_for_bit(net: Net) -> None:
    softq = SoftQuantizer(net, 0.1, override={"head*": {"h": 0}})
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, -0.0)
    softq.add_force_()
    assert net.head.weight.grad.signbit().all()
    assert net.conv.weight.grad.any()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"haed*": {"h": 1}}, r"'haed\*' matches no coupled weight; there are: body\.0"),
        ({"norm.*": {"h": 1}}, r"'norm\.\*' matches no coupled weight"),
        ({"body*": {"h": 1}, "body.2*": {"w": 1}}, r"'body\.2\*' comes too late: .* 'body\*'; put"),
        ({"head*": {}}, r"expected h, w or both for 'head\*' in `override`, got \{\}"),
        ({"head*": {"sigma": 1}}, "expected h, w or both"),
        ({"head*": 0.1}, "expected h, w or both .* got 0.1"),
        ({"head*": {"w": 0}}, r"override 'head\*': w must be finite and above 0"),
        ({"conv*": {"h": 1}}, r"'conv\*' matches no coupled weight"),
    ],
)
def test_wrong_overrides_are_refused(net: Net, override: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftQuantizer(net, override=override, exclude="conv*")


def test_the_state_keeps_overrides_and_older_states_have_none(net: Net) -> None:
    softq = SoftQuantizer(net, 0.1, override={"head*": {"w": 0.2}})
    other = SoftQuantizer(net)
    other.load_state_dict(softq.state_dict())
    assert other.state_dict() == softq.state_dict()
    assert rules(other) == rules(softq)
    state = SoftQuantizer(net, 0.1).state_dict()
    del state["override"]
    with pytest.warns(UserWarning, match=r"take the place of those given: override \[\], not"):
        other.load_state_dict(state)
    assert other.override == {}


def test_every_tensor_is_listed_with_its_rule() -> None:
    torch.manual_seed(0)
    model = Net()
    model.tied = model.head  # type: ignore[assignment]
    model.flat = nn.Linear(4, 1)
    nn.init.constant_(model.flat.weight, 0.5)
    model.scale = nn.Parameter(torch.ones(3))
    model.conv.requires_grad_(False)
    model.register_buffer("mask", torch.ones(2, 2), persistent=False)
    with pytest.warns(UserWarning, match=r"'flat\.weight' is not coupled"):
        softq = SoftQuantizer(model, 0.1, exclude="body.0*")
    weight = ("coupled", "h = 0.1, w = 0.5")
    assert rules(softq) == {
        "scale": ("excluded", "1 dimension"),
        "conv.weight": ("excluded", "frozen (requires_grad is False)"),
        "conv.bias": ("excluded", "bias"),
        "norm.weight": ("excluded", "normalization"),
        "norm.bias": ("excluded", "normalization"),
        "body.0.weight": ("excluded", "exclude pattern 'body.0*'"),
        "body.0.bias": ("excluded", "bias"),
        "body.2.weight": weight,
        "body.2.bias": ("excluded", "bias"),
        "head.weight": weight,
        "head.bias": ("excluded", "bias"),
        "tied.weight": ("coupled", "tied to 'head.weight'"),
        "tied.bias": ("excluded", "tied to 'head.bias'"),
        "flat.weight": ("degenerate", "degenerate: all 4 weights are equal"),
        "flat.bias": ("excluded", "bias"),
        "norm.running_mean": ("excluded", "buffer"),
        "norm.running_var": ("excluded", "buffer"),
        "norm.num_batches_tracked": ("excluded", "buffer"),
    }
    assert rules(softq).keys() == model.state_dict().keys()  # none is missing, none is invented


def test_uninitialized_parameters_are_listed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2), nn.LazyBatchNorm1d())
    message = r"parameter '1\.weight' is not coupled: not initialized yet; run a forward pass first"
    with pytest.warns(UserWarning, match=message) as caught:
        tensors = {tensor.name: tensor for tensor in SoftQuantizer(model).tensors()}
    assert len([warning for warning in caught if "not coupled" in str(warning.message)]) == 1
    assert tensors["1.weight"].rule == "not initialized yet; run a forward pass first"
    assert tensors["1.weight"].size == tensors["2.running_mean"].size == 0
    assert (tensors["1.bias"].rule, tensors["2.weight"].rule) == ("bias", "normalization")


def test_special_tensors_are_left_out_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(SpecialTensor(3, 3))
    with pytest.warns(UserWarning, match=r"'1\.weight' is not coupled: special tensor: one of cla"):
        softq = SoftQuantizer(model)
    assert softq.excluded["1.weight"] == "special tensor: one of class SpecialTensor"
    model[1].weight = nn.Parameter(SpecialTensor(3, 3), requires_grad=False)
    assert SoftQuantizer(model).excluded["1.weight"] == "frozen (requires_grad is False)"


def test_the_report_tells_how_many_tensors_each_rule_took(net: Net) -> None:
    config = ClusteringConfig(h=0.1, n_min=2, override={"body*": {"w": 0.3}})
    report = prepare(net, config).finalize(**config.cluster_options)
    found = {(status, rule): len(members) for status, rule, members in report.coverage()}
    assert found == {
        ("coupled", "h = 0.1, w = 0.5"): 2,
        ("coupled", "override 'body*': h = 0.1, w = 0.3"): 2,
        ("excluded", "bias"): 4,
        ("excluded", "normalization"): 2,
        ("excluded", "buffer"): 3,
    }
    text = str(report)
    assert "conv.bias, body.0.bias and 2 more" in text
    (total,) = [line.split() for line in text.splitlines() if line.startswith("  all ")]
    values = sum(tensor.numel() for tensor in net.state_dict().values())
    assert total == ["all", "13", f"{values:,}"]
    plain = json.loads(json.dumps(report.to_dict()))
    assert [row["name"] for row in plain["tensors"]] == [t.name for t in report.tensors]


def test_finalize_leaves_the_optimizer_alone_and_checks_the_model(net: Net) -> None:
    config = ClusteringConfig(h=0.1, bits=4)
    softq = prepare(net, config)
    optimizer = torch.optim.SGD(net.parameters())
    softq.attach(optimizer)
    report = softq.finalize(**config.cluster_options)
    for layer in report.layers:
        assert len(net.get_parameter(layer.name).unique()) == layer.clusters
    validate_clustering(net, report)
    before = net.head.weight.detach().clone()
    net.head.weight.grad = torch.zeros_like(net.head.weight)
    optimizer.step()
    assert torch.equal(net.head.weight, before)

    with torch.no_grad():
        net.head.weight[0] += torch.arange(20) / 1000
    with pytest.raises(
        ValueError, match=r"not clustered as reported: 'head\.weight' has \d+ values for"
    ):
        validate_clustering(net, report)
    with pytest.raises(ValueError, match=r"'conv\.weight' is not there; 'body"):
        validate_clustering(nn.Linear(3, 3), report)


@pytest.mark.parametrize("name", ["parametrizations", "weight_norm", "spectral_norm", "pruning"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_are_computed_are_left_out_with_a_warning(net: Net, name: str) -> None:
    layer = net.body[2]
    {
        "parametrizations": lambda: parametrizations.weight_norm(layer),
        "weight_norm": lambda: nn.utils.weight_norm(layer),
        "spectral_norm": lambda: nn.utils.spectral_norm(layer),
        "pruning": lambda: prune.l1_unstructured(layer, "weight", 0.5),
    }[name]()
    with pytest.warns(UserWarning, match=r"'body\.2\..*' is not coupled: parametrized"):
        softq = SoftQuantizer(net)
    assert [x.name for x in softq.layers] == ["conv.weight", "body.0.weight", "head.weight"]
    assert any("parametrized" in tensor.rule for tensor in softq.tensors())
    if name == "parametrizations":
        parametrize.remove_parametrizations(layer, "weight")
        assert len(SoftQuantizer(net).layers) == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_compiled_and_data_parallel_models_are_looked_into(net: Net) -> None:
    expected = SoftQuantizer(net).state_dict()
    for wrapped in (torch.compile(net), nn.DataParallel(net), nn.DataParallel(torch.compile(net))):
        softq = SoftQuantizer(wrapped)
        assert softq.model is net
        assert softq.state_dict() == expected


def test_flattened_models_are_refused(net: Net) -> None:
    class FullyShardedDataParallel(nn.Module):
        """As that of torch, which wants a process group."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(ValueError, match=r"layer '.*': FullyShardedDataParallel has several"):
        SoftQuantizer(FullyShardedDataParallel(net))
    next(net.parameters()).ds_shape = (1, 2)  # as DeepSpeed ZeRO-3 marks them
    with pytest.raises(ValueError, match=r"layer '.*': DeepSpeed ZeRO-3 takes the weights"):
        SoftQuantizer(net)


def test_an_older_report_lists_no_tensors() -> None:
    assert "Tensors" not in str(CompressionReport(()))


def test_a_strength_that_is_not_set_stays_so(tmp_path: Path) -> None:
    for options in (ClusteringConfig(w=0.3), ClusteringConfig(h=0.01, w=0.3)):
        assert ClusteringConfig.from_dict(options.to_dict()).chooses_h == options.chooses_h
        options.to_yaml(tmp_path / "a.yaml")
        again = ClusteringConfig.from_yaml(tmp_path / "a.yaml")
        assert again == options
        assert again.chooses_h == options.chooses_h
