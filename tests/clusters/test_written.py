"""Clusters that were written and are gone: noticed wherever the model is written to a file."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pysoftq import Codebooks, SoftQuantizer, load_compressed, save_compressed, unique
from pysoftq.clusters.written import forget_clusters, lost_clusters
from pysoftq.export import to_state_dict


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Sequential(nn.Linear(24, 8)))


@pytest.fixture(params=["layer", "channel", "group:8"])
def trained(request: pytest.FixtureRequest) -> nn.Module:
    model = make_model()
    SoftQuantizer(model, granularity=request.param).finalize(bits=2, n_min=0, refinement="count")
    return model


def load_trained(model: nn.Module) -> None:
    model.load_state_dict(make_model().state_dict())


def take_a_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def take_an_average(model: nn.Module) -> None:
    average = AveragedModel(model)
    average.update_parameters(model)
    average.update_parameters(make_model())
    model.load_state_dict(average.module.state_dict())


@pytest.mark.parametrize("overwrite", [load_trained, take_a_step, take_an_average])
@pytest.mark.filterwarnings("ignore:the clusters are of another granularity")
def test_overwritten_clusters_are_missed_aloud(
    trained: nn.Module, overwrite: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    save_compressed(trained, tmp_path / "a.safetensors")
    pickled = pickle.loads(pickle.dumps(trained))  # noqa: S301
    for model in (trained, copy.deepcopy(trained), pickled):
        overwrite(model)
        assert set(lost_clusters(model)) == {"0.weight", "2.0.weight"}
        message = r"clusters that were written .* gone: '0\.weight' has \d+ values for \d+ clu"
        with pytest.warns(UserWarning, match=message) as caught:
            save_compressed(model, tmp_path / "b.safetensors")
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="are gone") as caught:
            to_state_dict(model, tmp_path / "b.pt", overwrite=True)
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"'weight' has \d+ values"):
        save_compressed(trained[0], tmp_path / "part.safetensors")


def test_what_adds_no_values_is_no_loss(trained: nn.Module, tmp_path: Path) -> None:
    assert lost_clusters(trained) == {}
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(0.9)  # as decay of the weights does
    assert lost_clusters(trained) == {}
    names = ("0.weight", "2.0.weight")
    codebooks = Codebooks(trained, {name: unique(trained.get_parameter(name)) for name in names})
    with torch.no_grad():
        for values in codebooks.parameters():
            values.add_(torch.randn_like(values))
    codebooks.write()
    save_compressed(trained, tmp_path / "a.safetensors")


def test_nothing_of_it_is_in_state_dicts(trained: nn.Module) -> None:
    assert list(trained.state_dict()) == list(make_model().state_dict())
    other = make_model()
    other.load_state_dict(trained.state_dict())
    take_a_step(other)
    assert lost_clusters(other) == {}


def test_finalize_again_and_loading_renew_what_is_expected(
    trained: nn.Module, tmp_path: Path
) -> None:
    take_a_step(trained)
    SoftQuantizer(trained).finalize(bits=3, n_min=0, refinement="count")
    save_compressed(trained, tmp_path / "a.safetensors")
    other = copy.deepcopy(trained)
    load_compressed(tmp_path / "a.safetensors", trained)
    take_a_step(trained)
    assert lost_clusters(trained) == {}
    take_a_step(other)
    forget_clusters(other)
    assert lost_clusters(other) == {}


def test_wrapped_models_are_looked_into(trained: nn.Module, tmp_path: Path) -> None:
    trained[2] = torch.compile(trained[2], backend="eager")
    softq = SoftQuantizer(nn.DataParallel(trained))
    softq.finalize(bits=2, n_min=0, refinement="count")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_compressed(nn.DataParallel(trained), tmp_path / "a.safetensors")
    take_a_step(trained)
    assert set(lost_clusters(nn.DataParallel(trained))) == {"0.weight", "2.0.weight"}


def test_parameters_that_no_file_holds_are_no_loss(trained: nn.Module, tmp_path: Path) -> None:
    trained[0].weight = nn.Parameter(torch.empty(24, 16, device="meta"))
    trained[2][0].weight = nn.Parameter(torch.eye(8).to_sparse(), requires_grad=False)
    assert lost_clusters(trained) == {}
    for write in (save_compressed, to_state_dict):
        with pytest.raises(
            TypeError, match=r"0\.weight must be a dense tensor with values, got one"
        ):
            write(trained, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
