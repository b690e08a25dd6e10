"""One step of training in its variants, against a step written out here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import Recorder, Training, tiny_digits, tiny_training
from torch import Tensor

from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.images import Dataset
from pysoftq.interaction.backends import has_cuda
from pysoftq.run.checkpoint import load_checkpoint, save_checkpoint
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.finetune import finetune
from pysoftq.run.folder import RunFolder, open_run
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.state import RunState
from pysoftq.run.step import GraphedStep, Stopwatch, Tally, TrainingStep, make_step, own_stream

BATCH = 32


def options(**given: object) -> CompressConfig:
    return make_config({"epochs": 3, "batch_size": BATCH, "h": 0.05, "lr": 0.01}, given)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_digits(train=5 * BATCH + 9)  # the last batch is incomplete


def plain_epoch(training: Training, data: Dataset, epoch: int) -> list[tuple[float, int, int]]:
    """An epoch as anybody would write it."""
    told = []
    training.model.train()
    for images, labels in data.batches(0, epoch, BATCH):
        training.optimizer.zero_grad()
        logits = training.model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        training.softq.add_force_()
        training.optimizer.step()
        told.append((loss.item(), int((logits.argmax(1) == labels).sum()), len(labels)))
    return told


def epoch_of_steps(
    step: TrainingStep, training: Training, data: Dataset, epoch: int
) -> list[tuple[float, int, int]]:
    tally = Tally()
    training.model.train()
    for images, labels in data.batches(0, epoch, BATCH):
        tally.add(*step(images, labels), len(labels))
    return tally.read()


def new_step(kind: type[TrainingStep], training: Training, config: CompressConfig) -> TrainingStep:
    return kind(training.model, training.optimizer, config, BATCH, training.softq)


def assert_same_weights(one: Training, other: Training) -> None:
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize("h", [0.0, 0.05])
def test_a_step_is_the_plain_one(data: Dataset, h: float) -> None:
    config = options(h=h)
    plain, training = tiny_training(config), tiny_training(config)
    step = new_step(TrainingStep, training, config)
    assert epoch_of_steps(step, training, data, 0) == plain_epoch(plain, data, 0)
    assert_same_weights(plain, training)
    assert training.softq.step == plain.softq.step == 6


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_is_used_in_the_forward_pass_alone(data: Dataset) -> None:
    exact, rough = tiny_training(options()), tiny_training(options())
    seen = []
    rough.model.layer1.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    step = new_step(TrainingStep, rough, options(amp="bf16"))
    images, labels = next(data.batches(0, 0, BATCH))
    loss, _ = step(images, labels)
    wanted, _ = new_step(TrainingStep, exact, options())(images, labels)
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert loss.item() != wanted.item()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02)
    for parameter in rough.model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def test_compiled_code_serves_whole_batches(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        sizes.append({len(value) for value in inputs if value.ndim == 4} & {BATCH, 9})
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, training = tiny_training(options()), tiny_training(options())
    step = new_step(TrainingStep, training, options(compile=True))
    for epoch in range(2):
        assert epoch_of_steps(step, training, data, epoch) == plain_epoch(plain, data, epoch)
    assert sizes == [{BATCH}]
    assert_same_weights(plain, training)


class Replays:
    """Stands in for CUDA graphs: a replay does the work again, but for Python's counting.

    Gradients are overwritten where they are, since there were none at the recording.
    """

    def __init__(self, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
        self.training = training
        self.recorded = 0
        monkeypatch.setattr("pysoftq.run.step.record_graph", self.record)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        assert all(parameter.grad is None for parameter in self.training.model.parameters())
        self.recorded += 1
        written: list[Tensor] = []

        def replay() -> None:
            step = self.training.softq.step
            self.training.optimizer.zero_grad(set_to_none=False)
            work()
            self.training.softq.step = step
            gradients = [parameter.grad for parameter in self.training.model.parameters()]
            written.extend(gradients[len(written) :])
            assert all(map(operator.is_, gradients, written))

        return replay


@pytest.mark.parametrize("kernels", [False, True])
def test_a_graph_repeats_the_step(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, kernels: bool
) -> None:
    plain, training = tiny_training(options()), tiny_training(options())
    graphs = Replays(training, monkeypatch)
    monkeypatch.setattr("pysoftq.run.step.has_cuda", lambda: kernels)
    step = new_step(GraphedStep, training, options())
    for epoch, fraction in enumerate((0.3, 0.6, 1.0)):
        plain.softq.fraction = training.softq.fraction = fraction
        told = epoch_of_steps(step, training, data, epoch)
        assert told == plain_epoch(plain, data, epoch)
        assert (step.force_time.read() is None) == kernels
    assert_same_weights(plain, training)
    assert training.softq.step == plain.softq.step == 18
    assert graphs.recorded == 1


class Streams:
    """Stands in for the streams of a device; `order` lists which ones wait and are current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = "default"
        self.order: list[str] = []
        for name in ("Stream", "stream", "current_stream", "default_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream("own", self.order)

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self.current, self.order)

    def default_stream(self, device: torch.device) -> FakeStream:
        return FakeStream("default", self.order)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


@dataclass(frozen=True)
class FakeStream:
    name: str
    order: list[str] = field(compare=False)

    def wait_stream(self, other: FakeStream) -> None:
        self.order.append(f"{self.name} waits for {other.name}")


def test_work_on_the_default_stream_moves_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    with own_stream(torch.device("cpu")):
        assert streams.current == "default"
    with own_stream(torch.device("cuda")):
        assert streams.current == "own"
        with own_stream(torch.device("cuda")):
            assert streams.current == "own"
        streams.order.append("work")
    assert streams.current == "default"
    assert streams.order == ["own waits for default", "work", "default waits for own"]


def test_a_graph_holds_the_coupling_where_it_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    training = tiny_training(options())
    groups = SoftQuantizer(training.model, granularity="channel")
    for kernels in (False, True):
        monkeypatch.setattr("pysoftq.run.step.has_cuda", lambda kernels=kernels: kernels)
        for softq in (training.softq, groups):
            step = GraphedStep(training.model, training.optimizer, options(), BATCH, softq)
            assert step._whole is (softq if kernels else None)


def test_a_graph_leaves_a_falling_rate_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysoftq.run.step.has_cuda", lambda: True)
    training = tiny_training(options())
    assert new_step(GraphedStep, training, options(lr_schedule="cosine"))._whole is None


def test_a_graph_without_coupling(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, training = tiny_training(options(h=0)), tiny_training(options())
    Replays(training, monkeypatch)
    step = GraphedStep(training.model, training.optimizer, options(), BATCH)
    assert epoch_of_steps(step, training, data, 0) == plain_epoch(plain, data, 0)
    assert_same_weights(plain, training)


def test_a_step_that_cannot_be_recorded(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("pysoftq.run.step.record_graph", refuse)
    training = tiny_training(options())
    step = new_step(GraphedStep, training, options())
    with pytest.raises(RuntimeError, match=r"not permitted .*'graph': off runs it without"):
        epoch_of_steps(step, training, data, 0)


def test_a_step_on_the_cpu_is_no_graph() -> None:
    training = tiny_training(options())
    step = make_step(training.model, training.optimizer, options(), BATCH, training.softq)
    assert type(step) is TrainingStep


def test_optimizer_takes_few_kernels_and_the_same_steps(data: Dataset) -> None:
    one, other = tiny_training(options()), tiny_training(options())
    assert one.optimizer.defaults["foreach"]
    plain = torch.optim.SGD(
        other.model.parameters(), lr=0.01, momentum=0.9, nesterov=True, foreach=False
    )
    plain_epoch(one, data, 0)
    plain_epoch(replace(other, optimizer=plain), data, 0)
    assert_same_weights(one, other)
    assert not make_optimizer(one.model, 0.1, 0.0, 0.0).defaults["nesterov"]


def test_stopwatch_adds_up_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([1.0, 3.0, 10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            pass
    assert watch.read() == 6
    assert watch.read() == 0
    watch.hidden = True
    with watch:
        pass
    assert watch.read() is None
    assert watch.read() == 0


def test_tally_keeps_the_order_and_begins_anew() -> None:
    tally = Tally()
    for loss, hits, size in ((0.1, 3, 4), (0.2, 1, 2)):
        tally.add(torch.tensor(loss), torch.tensor(hits), size)
    assert tally.read() == [(pytest.approx(0.1), 3, 4), (pytest.approx(0.2), 1, 2)]
    assert tally.read() == []


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_goes_on_in_another_layout(tmp_path: Path, data: Dataset, fused: bool) -> None:
    """As when it moves between CPU and GPU: the optimizer's state follows the parameters."""
    config = options(h=0, momentum=0.9)
    one, other = tiny_training(config), tiny_training(config)
    for training in (one, other):
        training.optimizer.param_groups[0].update(fused=fused, foreach=False)
    plain_epoch(one, data, 0)
    folder = RunFolder(tmp_path)
    save_checkpoint(one.as_run(config, folder, data), one.optimizer, RunState())
    other.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_checkpoint(other.as_run(config, folder, data), other.optimizer)
    for parameter, state in other.optimizer.state.items():
        assert state["momentum_buffer"].stride() == parameter.stride()
    plain_epoch(one, data, 1)
    plain_epoch(other, data, 1)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_graph_and_single_kernels_train_alike(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, amp: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    device = torch.device("cuda")
    runs = []
    for graph in ("off", "on"):
        config = options(graph=graph, amp=amp, fraction_start=0.5)
        training = tiny_training(config, device)
        state, observer = RunState(), Recorder()
        with own_stream(device), open_run(tmp_path / graph) as folder:
            run = training.as_run(config, folder, data.to(device), observer)
            finetune(run, training.optimizer, state, StopRequest())
        runs.append((training, observer))
    (eager, told), (graphed, told_by_graph) = runs
    assert_same_weights(eager, graphed)
    for line, other in zip(told.epochs, told_by_graph.epochs, strict=True):
        for timed in ("seconds", "images_per_second", "coupling_share"):
            del line[timed], other[timed]
        assert line == other


@pytest.mark.gpu
def test_batches_are_the_same_on_a_gpu(data: Dataset) -> None:
    on_gpu = data.to(torch.device("cuda"))
    batches = zip(data.batches(0, 1, BATCH), on_gpu.batches(0, 1, BATCH), strict=True)
    for (images, labels), (images_there, labels_there) in batches:
        torch.testing.assert_close(images_there.cpu(), images, rtol=1e-6, atol=1e-6)
        assert torch.equal(labels_there.cpu(), labels)
        assert images_there.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_a_step_waits_for_nothing(data: Dataset) -> None:
    device = torch.device("cuda")
    config = options(h=0.05 if has_cuda() else 0)  # torch's operations alone do wait
    training = tiny_training(config, device)
    with own_stream(device):
        there = data.to(device)
        step = new_step(GraphedStep, training, config)
        epoch_of_steps(step, training, there, 0)
        batches = there.batches(0, 1, BATCH)
        next(batches)  # sends the order of the epoch
        tally = Tally()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for images, labels in batches:
                tally.add(*step(images, labels), len(labels))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(tally.read()) == 5
