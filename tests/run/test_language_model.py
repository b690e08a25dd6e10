"""Language models: text as data, the small GPT, whole runs, models of a Hugging Face folder."""

from __future__ import annotations

import json
import math
import platform
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Recorder

from pysoftq.analysis.landscape import read_states
from pysoftq.analysis.page import run_page
from pysoftq.artifact import load_compressed
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.tasks import LANGUAGE_MODELLING
from pysoftq.data.text import TextData, Tokens, pydoc_text, read_text
from pysoftq.errors import ConfigError, Interrupted
from pysoftq.models.build import build_model
from pysoftq.models.gpt import GPT
from pysoftq.run.config import CompressConfig, command_line, make_config, new_config
from pysoftq.run.driver import compress
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.setup import read_data
from pysoftq.run.state import RunState

CONTEXT = 16


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some thousand characters, two of them not ASCII."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("αβ" + pydoc_text()[:6000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> TextData:
    return read_text(f"text:{file}", CONTEXT)


def test_bytes_of_the_whole_text(file: Path, data: TextData) -> None:
    halves = torch.cat([data.train.ids, data.test.ids])
    assert bytes(halves.tolist()) == file.read_bytes()
    assert data.test.ids.numel() / halves.numel() == pytest.approx(0.1, abs=0.01)
    assert data.model_shape == {"vocab_size": 256, "context": CONTEXT}


def test_ends_of_lines_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"one\r\ntwo\rthree\n" * 40)
    data = read_text(f"text:{tmp_path / 'dos.txt'}", CONTEXT)
    halves = torch.cat([data.train.ids, data.test.ids])
    assert bytes(halves.tolist()) == (tmp_path / "dos.txt").read_bytes()


def test_targets_follow_their_tokens_and_windows_do_not_overlap(data: TextData) -> None:
    epochs = []
    for augment in (False, True):
        seen = []
        for inputs, targets in data.batches(0, 3, 7, augment=augment):
            assert inputs.shape == targets.shape
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            seen.append(targets)
        epochs.append(torch.cat(seen))
        assert epochs[-1].shape == (len(data.train), CONTEXT)
    # From the beginning on, in another order; with a random beginning, other windows.
    whole = data.train.ids[1 : len(data.train) * CONTEXT + 1].view(-1, CONTEXT)
    assert sorted(epochs[0].tolist()) == sorted(whole.tolist())
    assert sorted(epochs[1].tolist()) != sorted(whole.tolist())


def test_batches_are_pure_functions_of_their_numbers(data: TextData) -> None:
    whole = list(data.batches(5, 2, 8))
    later = list(data.batches(5, 2, 8, start=len(whole) - 2))
    for (inputs, targets), (again, targets_again) in zip(whole[-2:], later, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(targets, targets_again)
    other = next(iter(data.batches(5, 3, 8)))
    assert not torch.equal(whole[0][0], other[0])


def test_evaluation_predicts_every_token_but_the_first(data: TextData) -> None:
    for half in (data.train, data.test):
        targets = torch.cat([batch.flatten() for _, batch in data.ordered(half)])
        assert torch.equal(targets, half.ids[1:])
    exact = Tokens(data.test.ids[: 2 * CONTEXT + 1], CONTEXT)
    assert [batch.shape for batch, _ in data.ordered(exact)] == [(2, CONTEXT)]


def test_the_embedded_text_is_of_this_python_and_tests_what_is_new() -> None:
    data = read_text("pydoc", 128)
    assert data.fingerprint().startswith(f"pydoc of Python {platform.python_version()}: ")
    assert data.fingerprint() != read_text("pydoc", 64).fingerprint()
    train, test = (bytes(half.ids.tolist()).decode() for half in (data.train, data.test))
    assert len(train) + len(test) > 300_000
    shared = set(train.split("\n\n")) & set(test.split("\n\n"))
    assert not shared


def run(given: dict[str, Any], folder: Path) -> None:
    compress(make_config(given), folder, Recorder())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dataset": "text:missing.txt"}, "no text file missing.txt"),
        ({"dataset": "text:latin"}, "latin is no text in UTF-8"),
        ({"dataset": "text:short"}, "the test text has 4 tokens, expected at least 32"),
        ({"dataset": "text"}, "expected one of"),
        ({"model": "resnet20"}, "model 'resnet20' does not read text"),
        ({"dataset": "digits", "model": "gpt"}, "model 'gpt' is a language model"),
        ({"model": "hf:nowhere"}, "expected hf: and a folder with config.json"),
    ],
)
def test_refusals(
    options: dict[str, Any], told: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin").write_bytes("ä".encode("latin-1") * 100)
    Path("short").write_text("a" * 40, encoding="utf-8")
    with pytest.raises((ConfigError, OSError), match=told):
        run({"dataset": f"text:{file}", "context": CONTEXT, **options}, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").is_file()


def test_gpt_sees_the_past_alone() -> None:
    torch.manual_seed(0)
    model = build_model("gpt-tiny", vocab_size=11, context=8)
    tokens = torch.randint(11, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert before.shape == (2, 8, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(2).all()


def test_embeddings_of_the_gpt_are_its_head_and_coupled_once() -> None:
    model = build_model("gpt-tiny", vocab_size=11, context=8)
    assert isinstance(model, GPT)
    names = [layer.name for layer in SoftQuantizer(model, 0.1, 0.5).layers]
    assert names.count("tokens.weight") == 1
    assert not [name for name in model.state_dict() if "head" in name]
    # Both uses are felt: a token that is never read is still predicted.
    F.cross_entropy(model(torch.zeros(1, 3, dtype=torch.long))[0], torch.zeros(3).long()).backward()
    assert model.tokens.weight.grad is not None
    assert (model.tokens.weight.grad[5] != 0).all()


def test_adamw_is_that_of_torch() -> None:
    torch.manual_seed(0)
    one = build_model("gpt-tiny", vocab_size=11, context=8)
    other = build_model("gpt-tiny", vocab_size=11, context=8)
    other.load_state_dict(one.state_dict())
    plain = torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.8, 0.99), weight_decay=0.3)
    tokens = torch.randint(11, (4, 8))
    for model, optimizer in ((one, make_optimizer(one, 0.01, 0.8, 0.3, "adamw")), (other, plain)):
        for _ in range(3):
            optimizer.zero_grad()
            model(tokens).square().mean().backward()
            optimizer.step()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def options(file: Path, **more: Any) -> CompressConfig:
    given = {
        "dataset": f"text:{file}",
        "model": "gpt-tiny",
        "context": CONTEXT,
        "epochs": 2,
        "pretrain_epochs": 2,
        "batch_size": 32,
        "pretrain_batch_size": 32,
    }
    return make_config(given, more)


def perplexity(model: torch.nn.Module, data: TextData) -> float:
    """Of the test text, token by token as anybody would write it."""
    ids, losses = data.test.ids, []
    for start in range(0, len(ids) - 1, data.context):
        window = ids[start : start + data.context + 1]
        with torch.no_grad():
            found = model(window[None, :-1])
        scores = (found if isinstance(found, torch.Tensor) else found.logits)[0]
        losses += (-scores.log_softmax(1)[range(len(window) - 1), window[1:]]).tolist()
    return math.exp(np.mean(losses))


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSOFTQ_CACHE", str(folder / "cache"))
        compress(options(file), folder / "run", Recorder())
    return folder / "run"


def rows(run: Path) -> dict[str, Any]:
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert content["task"] == LANGUAGE_MODELLING.name
    return {row["name"]: row for row in content["networks"]}


def metrics(run: Path) -> list[dict[str, Any]]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_tells_perplexities(finished: Path, data: TextData) -> None:
    found = rows(finished)
    model = load_compressed(finished / "compressed.safetensors").eval()
    assert found["soft, refined"]["perplexity"] == pytest.approx(perplexity(model, data), rel=1e-5)
    for row in found.values():
        assert row["perplexity"] == math.exp(row["loss"])
    lines = metrics(finished)
    assert lines[0]["test_perplexity_soft"] == found["pretrained"]["perplexity"]
    assert lines[-1]["test_perplexity_soft"] == found["soft"]["perplexity"]
    assert lines[1]["train_perplexity"] == math.exp(lines[1]["task_loss"])
    assert lines[1]["tokens_per_second"] > 0
    # The network has learnt something: it would be 256 if all bytes were alike to it.
    assert found["pretrained"]["perplexity"] < 200


def test_page_of_a_language_model(finished: Path) -> None:
    page = run_page(finished)
    assert "Perplexity against bits" in page
    assert "Tokens per second" in page
    # The help of `max_drop` names both.
    words = page.lower().replace("accuracy of", "").replace("points of accuracy or percent of", "")
    assert "accuracy" not in words


def test_flatness_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match="this study is for classifiers of images"):
        read_states(finished)


class Stopper(Recorder):
    """Interrupts the run once, after a step."""

    def on_step(self, state: RunState) -> None:
        super().on_step(state)
        if state.step == 7:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_goes_on_bit_for_bit(
    finished: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(finished.parent / "cache"))
    config = options(file)
    with pytest.raises(Interrupted):
        compress(config, tmp_path, Stopper())
    compress(config, tmp_path, Recorder(), resume=True)
    whole, resumed = (path / "soft.safetensors" for path in (finished, tmp_path))
    assert whole.read_bytes() == resumed.read_bytes()
    timed = ("seconds", "tokens_per_second", "coupling_share")
    for one, other in zip(metrics(finished), metrics(tmp_path), strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


def test_the_text_of_another_python_cannot_be_gone_on_with(
    file: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_bytes(file.read_bytes())
    with pytest.raises(Interrupted):
        compress(options(text), tmp_path / "run", Stopper())
    text.write_text(file.read_text(encoding="utf-8") + "more", encoding="utf-8")
    with pytest.raises(ConfigError, match="has changed"):
        compress(options(text), tmp_path / "run", Recorder(), resume=True)


def test_command_line_of_a_text(file: Path) -> None:
    words = command_line(new_config({"dataset": "pydoc", "lr": 0.5}))
    assert words == "pysoftq compress --dataset pydoc --lr 0.5"


@pytest.fixture(scope="module")
def folder_model(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a tokenizer of its own, as save_pretrained leaves them."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt2")
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([file.read_text(encoding="utf-8")], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces).save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=300,
            n_positions=CONTEXT,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.save_pretrained(folder)
    return folder


def test_a_model_of_a_folder_is_compressed(folder_model: Path, file: Path, tmp_path: Path) -> None:
    import transformers

    config = options(file, model=f"hf:{folder_model}")
    summary = compress(config, tmp_path / "run", Recorder())
    data = read_data(config)
    assert isinstance(data, TextData)
    text = file.read_text(encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_model)
    test = text[len(text) - len(text) // 10 :]
    assert data.test.ids.tolist() == tokenizer(test)["input_ids"]
    # The network that the run began with is the folder's own, without any pretraining.
    own = transformers.AutoModelForCausalLM.from_pretrained(folder_model).eval()
    assert summary.merit(summary["pretrained"]) == pytest.approx(perplexity(own, data), rel=1e-5)
    names = [layer.name for layer in summary.layers.layers]
    assert names.count("transformer.wte.weight") == 1
    assert "lm_head.weight" not in names
    # Tied tensors are counted once in the file of floats as well.
    floats = sum(4 * parameter.numel() for parameter in own.parameters())
    assert floats < summary["pretrained"].bytes_on_disk < 1.3 * floats
    found = load_compressed(tmp_path / "run" / "compressed.safetensors").eval()
    refined = summary.merit(summary["soft, refined"])
    assert refined == pytest.approx(perplexity(found, data), rel=1e-5)


@pytest.mark.parametrize(("context", "told"), [(CONTEXT + 1, f"sees {CONTEXT} tokens at most")])
def test_a_context_too_long_for_the_model(
    folder_model: Path, file: Path, tmp_path: Path, context: int, told: str
) -> None:
    config = options(file, model=f"hf:{folder_model}", context=context)
    with pytest.raises(ConfigError, match=told):
        compress(config, tmp_path, Recorder())


def test_a_folder_without_weights_or_tokenizer(
    folder_model: Path, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folder_model / "config.json").read_bytes())
    config = options(file, model=f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match="no tokenizer that can be loaded"):
        compress(config, tmp_path / "run", Recorder())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder_model / name).read_bytes())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        compress(config, tmp_path / "run", Recorder())
