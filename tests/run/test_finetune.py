"""The training loop against a plain one written here, and what it records."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import Recorder, Training, tiny_digits, tiny_training
from torch.optim.lr_scheduler import LambdaLR

from pysoftq.data.images import Dataset
from pysoftq.errors import Interrupted, NonFiniteLossError
from pysoftq.interaction.densities import density
from pysoftq.run.checkpoint import KEYS, read_sealed
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.evaluation import clustered, evaluate
from pysoftq.run.finetune import finetune
from pysoftq.run.folder import open_run
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.metrics import epoch_metrics
from pysoftq.run.recording import Recording
from pysoftq.run.state import RunState
from pysoftq.run.step import Tally

TIMES = {"seconds": 0, "images_per_second": 0, "coupling_share": 0}
read = Tally.read


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_digits()


def options(**given: object) -> CompressConfig:
    return make_config(
        {"epochs": 2, "batch_size": 32, "h": 0.01, "lr": 0.01, "dataset": "digits"}, given
    )


def run(
    training: Training,
    data: Dataset,
    config: CompressConfig,
    path: Path,
    stop: StopRequest | None = None,
    observer: Recorder | None = None,
) -> tuple[RunState, Recorder]:
    state, observer = RunState(), observer or Recorder()
    with open_run(path) as folder:
        run = training.as_run(config, folder, data, observer)
        finetune(run, training.optimizer, state, stop or StopRequest())
    return state, observer


@pytest.mark.parametrize(
    ("h", "schedule"), [(0.0, "constant"), (0.05, "constant"), (0.05, "cosine")]
)
def test_training_equals_a_plain_loop(
    data: Dataset, tmp_path: Path, h: float, schedule: str
) -> None:
    config = options(h=h, lr_schedule=schedule)
    training = tiny_training(config)
    state, observer = run(training, data, config, tmp_path / "run")

    plain = tiny_training(config)
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    plain.softq.attach(optimizer)
    cosine = LambdaLR(
        optimizer,
        lambda step: (1 + math.cos(math.pi * step / 10)) / 2 if schedule == "cosine" else 1.0,
    )
    losses, hits = [], []
    for epoch in range(2):
        plain.model.train()
        losses.append(0.0)
        hits.append(0)
        plain.softq.fraction = (0.3, 1.0)[epoch]
        for images, labels in data.batches(0, epoch, 32):
            logits = plain.model(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
            losses[-1] += loss.item() * len(labels)
            hits[-1] += int((logits.argmax(1) == labels).sum())
    assert [line["task_loss"] for line in observer.epochs[1:]] == [loss / 160 for loss in losses]
    assert [line["train_accuracy"] for line in observer.epochs[1:]] == [hit / 160 for hit in hits]
    assert observer.steps == list(range(1, 11))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, training.model.state_dict()[name]), name
    assert (state.epoch, state.batch, state.step) == (2, 0, 10)


def test_metrics_of_every_epoch(data: Dataset, tmp_path: Path) -> None:
    config = options()
    training = tiny_training(config)
    before = evaluate(training.model, data, data.train)
    _, observer = run(training, data, config, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == observer.epochs
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["step"] for line in lines] == [0, 5, 10]
    assert [line["fraction"] for line in lines] == [0.3, 0.3, 1.0]
    assert (lines[0]["task_loss"], lines[0]["train_accuracy"]) == before
    assert lines[2]["test_accuracy_soft"] == evaluate(training.model, data, data.test)[1]
    assert lines[2]["coupling_energy"] == training.softq.energy().total
    assert set(lines[2]["clusters"]) == {layer.name for layer in training.softq.layers}
    assert lines[2]["mean_bits_compressed"] <= lines[2]["mean_bits_before"] <= 7
    soft = training.weights()
    training.softq.finalize(**config.cluster_options)
    compressed = evaluate(training.model, data, data.test)[1]
    assert lines[2]["test_accuracy_compressed"] == compressed
    assert any(not torch.equal(soft[name], value) for name, value in training.weights().items())
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_clustered_for_a_while(fails: bool) -> None:
    training = tiny_training(options())
    clusters = training.softq.clusters(3)
    before = training.weights()
    with suppress(ZeroDivisionError), clustered(training.softq, clusters):
        for layer in training.softq.layers:
            assert len(layer.parameter.unique()) == clusters[layer.name].K
        if fails:
            raise ZeroDivisionError
    after = training.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluation_is_over_all_images_without_training(data: Dataset) -> None:
    model = tiny_training(options()).model
    model.train()
    statistics = model.bn1.running_mean.clone()
    loss, accuracy = evaluate(model, data, data.train)
    assert torch.equal(model.bn1.running_mean, statistics)
    with torch.no_grad():
        logits = model.eval()(data.normalize(data.train.pixels))
    assert loss == pytest.approx(F.cross_entropy(logits, data.train.labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == data.train.labels).double().mean().item()


def test_trajectories_follow_weights_of_the_last_layer(data: Dataset, tmp_path: Path) -> None:
    config = options()
    training = tiny_training(config)
    first = training.model.linear.weight.detach().flatten().clone()
    state, _ = run(training, data, config, tmp_path / "run")
    last = training.model.linear.weight.detach().flatten()
    assert state.trajectory_steps == list(range(11))
    assert len(first) == 160
    assert torch.equal(state.trajectories[0], first)
    assert torch.equal(state.trajectories[-1], last)


def test_densities_are_of_the_largest_layer(data: Dataset, tmp_path: Path) -> None:
    config = options(epochs=12)
    training = tiny_training(config)
    layer = training.model.layer3[0].conv2.weight
    first = layer.detach().clone()
    state, _ = run(training, data, config, tmp_path / "run")
    # Five steps an epoch: each of the first fifty, then every epoch's end.
    assert state.density_steps == [*range(50), 50, 55, 60]
    for row, theta in ((0, first), (-1, layer)):
        rho = density(theta.detach(), bins=512)
        assert state.densities[row].tolist() == rho.counts.tolist()
        assert state.density_ranges[row].tolist() == [rho.low, rho.high]


def test_eight_densities_of_a_long_epoch() -> None:
    training = tiny_training(options())
    recording, state = Recording(training.softq, epochs=30, batches=100), RunState()
    for state.step in range(300):
        state.epoch, state.batch = divmod(state.step, 100)
        recording.note(state)
    recording.read(state)
    assert state.density_steps[:10] == [0, 13, 25, 38, 50, 63, 75, 88, 100, 113]
    assert len(state.density_steps) == 24


@pytest.mark.parametrize("value", [0.25, float("nan"), float("inf")])
def test_density_of_a_layer_that_has_no_range(value: float) -> None:
    training = tiny_training(options())
    recording, state = Recording(training.softq, epochs=1, batches=1), RunState()
    torch.nn.init.constant_(recording.shown.parameter, value)
    recording.finish(state)
    assert state.densities[0].sum() == recording.shown.size


def test_early_snapshot_is_of_the_first_epoch(data: Dataset, tmp_path: Path) -> None:
    long, short = options(), options(epochs=1, fraction_start=0.3, fraction_ramp=1)
    training = tiny_training(long)
    state, _ = run(training, data, long, tmp_path / "long")
    # A run of one epoch uses all weights at once; make it draw the same share.
    alone = tiny_training(short)
    alone.softq.fraction = 0.3
    for images, labels in data.batches(0, 0, 32):
        alone.optimizer.zero_grad()
        F.cross_entropy(alone.model.train()(images), labels).backward()
        alone.softq.add_force_()
        alone.optimizer.step()
    largest = alone.model.layer3[0].conv2.weight
    assert torch.equal(state.early, largest.detach().flatten())


def test_fraction_rises_to_one() -> None:
    config = options(epochs=10, fraction_start=0.2, fraction_ramp=0.5)
    shares = [config.fraction(epoch, config.epochs) for epoch in range(10)]
    assert shares == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84] + [1.0] * 5)
    late = options(epochs=5, fraction_start=0.5, fraction_ramp=1)
    assert [late.fraction(epoch, late.epochs) for epoch in range(5)] == pytest.approx(
        [0.5, 0.625, 0.75, 0.875, 1.0]
    )
    assert options(epochs=1).fraction(0, 1) == 1.0
    assert options(epochs=9, fraction_ramp=0).fraction(0, 9) == 1.0


def test_a_device_that_must_be_waited_for_tells_the_same(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options()
    at_once, recorder = run(tiny_training(config), data, config, tmp_path / "at once")
    monkeypatch.setattr("pysoftq.run.loop.TrainingLoop.SYNCHRONOUS", ())
    reads = []
    monkeypatch.setattr(Tally, "read", lambda tally: reads.append(1) or read(tally))
    late, late_recorder = run(tiny_training(config), data, config, tmp_path / "late")
    assert len(reads) == 2  # epochs
    assert late.trajectory_steps == at_once.trajectory_steps
    for name in ("trajectories", "densities", "density_ranges"):
        for row, other in zip(getattr(late, name), getattr(at_once, name), strict=True):
            assert torch.equal(row, other), name
    for line, other in zip(late_recorder.epochs, recorder.epochs, strict=True):
        assert {**line, **TIMES} == {**other, **TIMES}


def test_speed_is_told_of_each_epoch(data: Dataset, tmp_path: Path) -> None:
    _, observer = run(tiny_training(options()), data, options(), tmp_path / "run")
    first, *epochs = observer.epochs
    assert (first["images_per_second"], first["coupling_share"]) == (None, None)
    for line in epochs:
        assert line["images_per_second"] == pytest.approx(160 / line["seconds"])
        assert 0 < line["coupling_share"] < 1


@pytest.mark.usefixtures("bfloat16")
def test_trains_in_bfloat16(data: Dataset, tmp_path: Path) -> None:
    exact, rough = options(lr=0.1), options(lr=0.1, amp="bf16")
    _, observer = run(tiny_training(exact), data, exact, tmp_path / "exact")
    _, rougher = run(tiny_training(rough), data, rough, tmp_path / "rough")
    losses = [[line["task_loss"] for line in told.epochs] for told in (observer, rougher)]
    assert losses[0][0] == losses[1][0]  # evaluation is in float32
    assert losses[0][2] != losses[1][2]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


class Spoiler(Recorder):
    """Spoils a weight after the seventh step."""

    def __init__(self, training: Training, value: float = math.nan) -> None:
        super().__init__()
        self.training, self.value = training, value

    def on_step(self, state: RunState) -> None:
        super().on_step(state)
        if state.step == 7:
            with torch.no_grad():
                self.training.model.linear.bias[0] = self.value


@pytest.mark.parametrize(("bias", "loss"), [(math.nan, "nan"), (-math.inf, "inf")])
def test_a_loss_that_is_not_finite_names_the_step(
    data: Dataset, tmp_path: Path, bias: float, loss: str
) -> None:
    config = options()
    training = tiny_training(config)
    with pytest.raises(NonFiniteLossError, match=rf"{loss} at step 7 \(epoch 2\)"):
        run(training, data, config, tmp_path / "run", observer=Spoiler(training, bias))
    content = read_sealed(tmp_path / "run" / "checkpoint.pt", KEYS)
    assert content["state"]["step"] == 5
    assert torch.isfinite(content["model"]["linear.bias"]).all()


def test_a_loss_that_is_read_late_still_names_its_step(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysoftq.run.loop.TrainingLoop.SYNCHRONOUS", ())
    config = options(h=0)
    training = tiny_training(config)
    spoiler = Spoiler(training)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 7 \(epoch 2\)"):
        run(training, data, config, tmp_path / "run", observer=spoiler)
    assert spoiler.steps[-1] == 10  # the end of the epoch
    content = read_sealed(tmp_path / "run" / "checkpoint.pt", KEYS)
    assert content["state"]["step"] == 5
    assert all(value.isfinite().all() for value in content["model"].values())


def test_a_stop_writes_a_checkpoint_after_the_step(data: Dataset, tmp_path: Path) -> None:
    stop = StopRequest()

    class Stopper(Recorder):
        def on_step(self, state: RunState) -> None:
            stop.asked = state.step == 3

    config = options()
    training = tiny_training(config)
    with pytest.raises(Interrupted):
        run(training, data, config, tmp_path / "run", stop, Stopper())
    content = read_sealed(tmp_path / "run" / "checkpoint.pt", KEYS)
    assert (content["state"]["epoch"], content["state"]["batch"]) == (0, 3)
    assert torch.equal(content["model"]["linear.bias"], training.model.linear.bias)


def test_a_checkpoint_is_written_within_an_epoch_when_it_is_due(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes, written = 0, []

    class Clock(Recorder):
        """Lets a minute pass in each step, and notes the step of the last checkpoint."""

        def on_step(self, state: RunState) -> None:
            nonlocal minutes
            minutes += 1
            content = read_sealed(tmp_path / "run" / "checkpoint.pt", KEYS)
            written.append(content["state"]["step"])

    clock = SimpleNamespace(monotonic=lambda: 60 * minutes, perf_counter=time.perf_counter)
    monkeypatch.setattr("pysoftq.run.loop.time", clock)
    config = options(checkpoint_minutes=1.5)
    run(tiny_training(config), data, config, tmp_path / "run", observer=Clock())
    # After every second step of an epoch of five, and at the end of the epoch.
    assert written == [0, 0, 2, 2, 4, 5, 5, 7, 7, 9]


def test_a_hidden_part_of_the_force_time_hides_its_share(data: Dataset, tmp_path: Path) -> None:
    config = options()
    training = tiny_training(config)
    state = RunState(loss_sum=1.0, seen=10, seconds=2.0)
    with open_run(tmp_path / "run") as folder:
        run = training.as_run(config, folder, data, Recorder())
        for seconds, share in ((0.5, 0.25), (None, None), (0.5, None)):
            state.add_force_time(seconds)
            assert epoch_metrics(run, training.optimizer, state).coupling_share == share
    state.next_epoch()
    assert state.force_seconds == 0.0
