"""What large language models require: less memory for the same steps, and its prediction."""

from __future__ import annotations

import importlib.util
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Recorder, tiny_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pysoftq import Compressor
from pysoftq.artifact import load_compressed
from pysoftq.data.text import TextData, pydoc_text, read_text
from pysoftq.errors import ConfigError, Interrupted
from pysoftq.models.build import build_model
from pysoftq.models.recompute import recompute_activations
from pysoftq.run import memory
from pysoftq.run.checkpoint import restore_optimizer
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.driver import compress
from pysoftq.run.evaluation import evaluate
from pysoftq.run.memory import predict_memory, shortage
from pysoftq.run.optimizers import make_optimizer, present_lr, set_lr
from pysoftq.run.setup import read_data
from pysoftq.run.state import RunState
from pysoftq.run.step import TrainingStep

CONTEXT = 16
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(pydoc_text()[:6000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> TextData:
    return read_text(f"text:{file}", CONTEXT)


def options(file: Path, **more: Any) -> CompressConfig:
    given = {"dataset": f"text:{file}", "model": "gpt-tiny", "context": CONTEXT, "epochs": 2}
    sizes = {"pretrain_epochs": 1, "batch_size": 32, "pretrain_batch_size": 32}
    return make_config({**given, **sizes, "recipe": "paper"}, more)


def steps(model: nn.Module, batches: Any, **given: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """The weights after two steps, and what the steps return."""
    config = make_config({"lr": 0.1, **given})
    step = TrainingStep(model, make_optimizer(model, 0.1, 0.9, 0.0), config, 30)
    model.train()
    told = [step(*batch) for batch in itertools.islice(batches, 2)]
    return model.state_dict(), [(float(loss), int(right)) for loss, right in told]


@pytest.mark.parametrize("accumulate", [2, 7, 30, 100])
def test_parts_of_a_batch_add_up_to_it(accumulate: int, data: TextData) -> None:
    found = []
    for parts in (1, accumulate):
        torch.manual_seed(0)
        model = build_model("gpt-tiny", vocab_size=256, context=CONTEXT).double()
        found.append(steps(model, data.batches(0, 0, 30), accumulate=parts))
    (one, told), (other, told_too) = found
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7)
    for (loss, right), (loss_too, right_too) in zip(told, told_too, strict=True):
        assert loss_too == pytest.approx(loss, rel=1e-5)
        assert right_too == right


def test_parts_of_one_image_are_refused_for_batch_normalisation(tmp_path: Path) -> None:
    class Narrow(nn.Sequential):
        pass

    from pysoftq.run.batches import check_batches

    model = Narrow(nn.Conv2d(1, 2, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 10))
    data = tiny_digits(train=64)
    check_batches(model, data, 32, "batch_size", accumulate=16)
    with pytest.raises(ConfigError, match="option 'accumulate' is 17 for batches of 32"):
        check_batches(model, data, 32, "batch_size", accumulate=17)


def test_activations_are_computed_again(data: TextData) -> None:
    batch = next(data.batches(0, 0, 8))
    found, calls = [], []
    for again in (False, True):
        torch.manual_seed(0)
        model = build_model("gpt-tiny", vocab_size=256, context=CONTEXT)
        block = model.get_submodule("blocks.0")
        block.register_forward_pre_hook(lambda *_: calls.append(None))
        if again:
            recompute_activations(model, "gpt-tiny")
        found.append(steps(model, [batch, batch]))
    assert len(calls) == 2 + 2 * 2
    for name, value in found[0][0].items():
        assert torch.equal(found[1][0][name], value), name


def test_networks_for_images_keep_their_activations() -> None:
    config = {"gradient_checkpointing": True, "model": "digits-resnet-small"}
    with pytest.raises(ConfigError, match="'digits-resnet-small' cannot compute activations again"):
        compress(make_config(config), Path("nowhere"), Recorder())
    with pytest.raises(ConfigError, match="option 'dtype' is bfloat16, which is for language"):
        compress(make_config({"dtype": "bfloat16"}), Path("nowhere"), Recorder())
    assert not Path("nowhere").exists()


def test_a_run_with_weights_in_bfloat16(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    config = options(file, dtype="bfloat16", recipe="best", codebook_epochs=1)
    summary = compress(config, tmp_path / "run", Recorder())
    for name in ("pretrained", "soft"):
        state = load_file(tmp_path / "run" / f"{name}.safetensors")
        assert {value.dtype for value in state.values()} == {torch.bfloat16}
    row = summary["soft, refined"]
    model = load_compressed(tmp_path / "run" / "compressed.safetensors")
    data = read_data(config)
    loss, _ = evaluate(model, data, data.test)
    assert loss == pytest.approx(row.loss, rel=0.01)  # of sums in float32
    pretrained = summary["pretrained"]
    assert pretrained.bytes_on_disk < 3 * sum(p.numel() for p in model.parameters())


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao compiles its steps, which takes a minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


class Stopper(Recorder):
    def on_step(self, state: RunState) -> None:
        import signal

        super().on_step(state)
        if state.step == 7:
            signal.raise_signal(signal.SIGINT)


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_adamw_in_8_bits_resumes_bit_for_bit(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    config = options(file, optimizer="adamw8bit", lr_schedule="cosine", epochs=1)
    whole = compress(config, tmp_path / "whole", Recorder())
    with pytest.raises(Interrupted):
        compress(config, tmp_path / "run", Stopper())
    compress(config, tmp_path / "run", Recorder(), resume=True)
    one, other = (tmp_path / name / "soft.safetensors" for name in ("whole", "run"))
    assert one.read_bytes() == other.read_bytes()
    assert whole["soft"].loss < whole["pretrained"].loss


@needs_torchao
@pytest.mark.usefixtures("eager")
def test_a_state_of_8_bits_takes_values_of_32() -> None:
    """Those of a run whose weights were in pieces."""
    model = nn.Linear(128, 64)
    optimizer = make_optimizer(model, 0.1, 0.9, 0.0, "adamw8bit")
    model(torch.ones(2, 128)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    kept = state["state"][0]["exp_avg"]
    state["state"][0] |= {
        name: state["state"][0][name].dequantize() for name in ("exp_avg", "exp_avg_sq")
    }
    restore_optimizer(optimizer, state)
    found = optimizer.state[model.weight]["exp_avg"]
    assert type(found) is type(kept)
    torch.testing.assert_close(found.dequantize(), kept.dequantize(), rtol=0.02, atol=0)
    config = make_config({"lr": 0.5})
    set_lr(optimizer, config, 0.0)
    assert present_lr(optimizer) == 0.5


def test_adamw_in_8_bits_requires_torchao(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysoftq.run.optimizers.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"requires torchao: run pip install 'pysoftq\[adamw8bit"):
        compress(make_config({"optimizer": "adamw8bit"}), tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_memory_grows_with_what_is_kept(data: TextData) -> None:
    model = build_model("gpt", vocab_size=256, context=CONTEXT)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())

    def predicted(**given: Any) -> memory.Memory:
        return predict_memory(model, data, make_config({"dataset": "pydoc", **given}))

    plain = predicted()
    assert plain.weights == plain.gradients == weights
    assert (plain.optimizer, plain.copies) == (2 * weights, 3 * weights)
    assert predicted(optimizer="sgd").optimizer == weights
    assert predicted(optimizer="sgd", momentum=0).optimizer == 0
    assert predicted(optimizer="adamw8bit").optimizer < 0.6 * weights
    assert plain.activations is not None
    half = predicted(accumulate=2).activations
    assert half == pytest.approx(plain.activations / 2, rel=0.05)
    recompute_activations(model, "gpt")
    assert predicted().activations < 0.6 * plain.activations
    assert model.training
    assert str(plain).startswith("memory of a process: about 0.0 GB at most (weights 0.00, ")


def test_activations_are_those_that_autograd_keeps(data: TextData) -> None:
    torch.manual_seed(0)
    model = build_model("gpt-tiny", vocab_size=256, context=CONTEXT)
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    inputs, targets = next(data.batches(0, 0, 8, augment=False))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(inputs)
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    sizes = [t.untyped_storage().nbytes() for place, t in kept.items() if place not in own]
    expected = sum(sizes) + memory.OF_LARGEST * max(sizes)
    config = make_config({"dataset": "pydoc", "batch_size": 8})
    assert predict_memory(model, data, config).activations == pytest.approx(expected, rel=0.1)


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make within the block, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self._live:
            self._live[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._live.pop(key)


@pytest.mark.filterwarnings("ignore::pysoftq.errors.QualityWarning")
@pytest.mark.parametrize("target", [{"target_bits": 2.0}, {"max_drop": 1.0}])
def test_a_target_takes_the_predicted_memory(target: dict[str, float], data: TextData) -> None:
    config = make_config({"dataset": "pydoc", **target})
    model = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in ((16, 512), (512, 16))))
    found = predict_memory(model, data, config)
    assert config.target is not None
    optimizer = make_optimizer(model, 1e-3, 0.9, 0.0)
    compressor = Compressor(model, config.target, {"h": 0.0}, coupled=0.2)
    with LiveBytes() as live:
        compressor.attach(
            optimizer,
            total_steps=9,
            # The first network is a good one, the second is not.
            evaluate=lambda: compressor.rungs[-1].bits if compressor.rungs else 2.8,
        )
        for step in range(9):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            if step == 0:  # gradients and momentum alone
                begin = live.now
    assert len(compressor.rungs) == (6 if "max_drop" in target else 1)
    assert live.now - begin == pytest.approx(found.networks, rel=0.15)
    assert live.most - begin == pytest.approx(found.networks + found.clusters, rel=0.2)


def test_a_network_that_asks_for_values_has_unknown_activations(data: TextData) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Embedding(256, 256)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.weight(tokens) * (2 if tokens.max().item() > 3 else 1)

    found = predict_memory(Asking(), data, make_config({"dataset": "pydoc"}))
    assert found.activations is None
    assert "activations unknown" in str(found)


def test_a_run_that_may_not_fit_warns(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "LARGE", 1000)
    monkeypatch.setattr(memory, "available_memory", lambda _: 10**5)
    observer = Recorder()
    with pytest.warns(UserWarning, match=r"the run needs about 0\.0 GB more, and 0\.0 GB are free"):
        compress(options(file), tmp_path / "run", observer)
    assert any("weights; memory of a process: about" in line for line in observer.messages)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = memory.Memory(10**9, 10**9, 0, None, 0, 0, 0, 0)
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "available_memory", lambda _: 15 * 10**8)
    assert shortage(needed, cpu, 1) == ""
    assert shortage(needed, cpu, 2).startswith("the run needs about 2.0 GB more for 2 processes")
    monkeypatch.setattr(memory, "available_memory", lambda _: None)
    assert shortage(needed, cpu, 2) == ""


@pytest.mark.parametrize(
    ("limit", "used", "expected"), [("max", "5", 3000), ("2500", "500", 2000), ("x", "5", 3000)]
)
def test_free_memory_is_within_the_limits_of_a_container(
    limit: str, used: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 3 kB\n",
        **dict(zip(map(str, memory._LIMITS), (limit, used), strict=True)),
    }
    read: Callable[..., str] = lambda path, **_: contents[str(path)]  # noqa: E731
    monkeypatch.setattr(Path, "read_text", read)
    assert memory.available_memory(torch.device("cpu")) == (expected if expected < 3000 else 3072)
