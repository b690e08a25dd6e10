"""The coupling in the loops of other libraries: the weights are those of the plain loop."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainers import (
    ACCUMULATE,
    BATCH,
    CLIP,
    CONFIG,
    EPOCHS,
    Digits,
    accelerate_train,
    batches,
    clustered,
    lightning_module,
    lightning_trainer,
    load_data,
    make_optimizer,
    make_trainer,
)

from pysoftq import (
    ClusteringConfig,
    inspect_compressed,
    load_compressed,
    prepare,
    save_compressed,
    validate_clustering,
)
from pysoftq.clusters.written import lost_clusters

# Other libraries warn of each other; what pysoftq warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::pysoftq")


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    return load_data()


@pytest.fixture
def model() -> Digits:
    torch.manual_seed(0)
    return Digits()


# --- Lightning ---
@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # no cluster is looked for
    return pytest.importorskip("lightning.pytorch")


@pytest.fixture
def plain(model: Digits, data: TensorDataset) -> Digits:
    """Trained by the plain loop, with gradient accumulation and clipping, before the clusters."""
    model = copy.deepcopy(model)
    softq, optimizer = prepare(model, CONFIG), make_optimizer(model)
    total, step = EPOCHS * len(data) // (BATCH * ACCUMULATE), 0
    for _ in range(EPOCHS):
        for (images, labels), steps in batches(data):
            softq.fraction = CONFIG.fraction(step, total)
            (model(images, labels)["loss"] / ACCUMULATE).backward()
            if steps:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                softq.add_force_()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
    assert step == softq.step == total
    return model


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_the_coupling_matters(model: Digits, plain: Digits) -> None:
    """What is compared below would differ without it."""
    assert not torch.equal(plain.net[0].weight, model.net[0].weight)
    assert prepare(plain, CONFIG).clusters()["net.2.weight"].K < 90


def test_lightning_trains_as_the_plain_loop(
    lightning: Any, model: Digits, plain: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    pretrained, module = copy.deepcopy(model), lightning_module(lightning, model)
    callback = SoftQuantizationCallback(CONFIG, finalize=False)
    trainer = lightning_trainer(lightning, tmp_path, callbacks=[callback])
    trainer.fit(module, DataLoader(data, BATCH))
    assert_same(module, plain)
    assert callback.softq.step == trainer.global_step
    assert callback.report is None

    again = lightning_module(lightning, pretrained)
    expected = clustered(plain, pretrained)
    callback = SoftQuantizationCallback(CONFIG.to_dict())
    trainer = lightning_trainer(lightning, tmp_path, callbacks=[callback])
    trainer.fit(again, DataLoader(data, BATCH))
    assert_same(again, expected)
    validate_clustering(again, callback.report)


def test_lightning_resumes_from_its_own_checkpoint(
    lightning: Any, model: Digits, plain: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    pretrained, other = copy.deepcopy(model), lightning_module(lightning, Digits())
    expected = clustered(plain, pretrained)
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    callbacks = [SoftQuantizationCallback(CONFIG), saving]
    trainer = lightning_trainer(lightning, tmp_path, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(lightning_module(lightning, model), DataLoader(data, BATCH))

    callback = SoftQuantizationCallback(CONFIG)
    trainer = lightning_trainer(lightning, tmp_path, callbacks=[callback])
    trainer.fit(other, DataLoader(data, BATCH), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert_same(other, expected)
    assert callback.softq.step == trainer.global_step == EPOCHS * 8


def test_lightning_with_manual_optimization_and_two_optimizers(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    def make_optimizers(net: nn.Sequential) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(net[0].parameters(), 0.1), torch.optim.Adam(net[2].parameters())]

    class Module(lightning.LightningModule):
        def __init__(self, net: nn.Sequential) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = net

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            first, second = self.optimizers()
            first.zero_grad()
            second.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            first.step()
            if batch_idx % 3 == 0:
                second.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return make_optimizers(self.net)

    config = CONFIG.model_copy(update={"fraction_start": 1.0})
    by_hand = copy.deepcopy(model)
    softq, (first, second) = prepare(by_hand, config), make_optimizers(by_hand.net)
    softq.attach(first, second)
    for number, (images, labels) in enumerate(DataLoader(data, BATCH)):
        by_hand.zero_grad()
        by_hand(images, labels)["loss"].backward()
        first.step()
        if number % 3 == 0:
            second.step()

    callback = SoftQuantizationCallback(config, finalize=False)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(model.net), DataLoader(data, BATCH))
    assert_same(model, by_hand)
    assert callback.softq.step == softq.step == 16 + 6


def test_lightning_says_where_the_end_is_not_known(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    module = lightning_module(lightning, model)
    callback = SoftQuantizationCallback(CONFIG)
    trainer = lightning_trainer(lightning, tmp_path, max_epochs=-1, callbacks=[callback])
    with pytest.raises(ValueError, match="the number of steps is not known"):
        trainer.fit(module, DataLoader(data, BATCH))


def test_lightning_leaves_the_optimizer_alone_after_a_failure(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    class Failing(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            raise RuntimeError("out of luck")

    module = lightning_module(lightning, model)
    callback = SoftQuantizationCallback(CONFIG)
    trainer = lightning_trainer(lightning, tmp_path, callbacks=[callback, Failing()])
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(module, DataLoader(data, BATCH))
    assert callback.report is None
    (optimizer,) = trainer.optimizers
    callback.softq.attach(optimizer)  # would be refused if it still were


def fitted(
    lightning: Any,
    model: Digits,
    data: TensorDataset,
    folder: Path,
    *callbacks: Any,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """The trainer, the module and the callback after a training; the best checkpoint is the first.

    Options are those of the trainer.
    """
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    module, callback = lightning_module(lightning, model), SoftQuantizationCallback(CONFIG)
    trainer = lightning_trainer(lightning, folder, callbacks=[callback, *callbacks], **options)
    trainer.fit(module, DataLoader(data, BATCH))
    return trainer, module, callback


@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_lightning_clusters_a_checkpoint_that_is_loaded_afterwards(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path, stage: str
) -> None:
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer, module, callback = fitted(
        lightning, model, data, tmp_path, saving, enable_checkpointing=True
    )
    first, trained = callback.report, copy.deepcopy(module.state_dict())
    run, loader = getattr(trainer, stage), DataLoader(data, BATCH)
    run(module, loader)
    assert callback.report is first
    path = str(tmp_path / "epoch=0.ckpt")
    with pytest.warns(UserWarning, match=r"epoch=0.* has overwritten the clusters of net\.0\.wei"):
        run(module, loader, ckpt_path=path)
    assert callback.report is not first
    assert not torch.equal(module.net[0].weight, trained["net.0.weight"])
    validate_clustering(module, callback.report)
    save_compressed(module, tmp_path / "a.safetensors")
    found = {layer.name: layer.K for layer in inspect_compressed(tmp_path / "a.safetensors").layers}
    assert found == {layer.name: layer.clusters for layer in callback.report.layers}

    callback.softq.model.requires_grad_(True)
    trainer.fit_loop.epoch_progress.reset()  # train once more, as a new training
    trainer.fit_loop.epoch_loop.reset()
    again = lightning_trainer(lightning, tmp_path, callbacks=[callback])
    again.fit(module, loader)
    assert callback.softq.step == again.global_step == EPOCHS * 8  # not from the checkpoint
    validate_clustering(module, callback.report)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "EMAWeightAveraging"])
def test_lightning_clusters_averaged_weights(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path, name: str, first: bool
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    averaging = {
        "StochasticWeightAveraging": lambda: lightning.callbacks.StochasticWeightAveraging(0.01),
        "EMAWeightAveraging": lambda: lightning.callbacks.EMAWeightAveraging(decay=0.5),
    }[name]()
    module, callback = lightning_module(lightning, model), SoftQuantizationCallback(CONFIG)
    callbacks = [callback, averaging] if first else [averaging, callback]
    trainer = lightning_trainer(lightning, tmp_path, callbacks=callbacks)
    if first:
        with pytest.warns(UserWarning, match="another callback has overwritten the clusters"):
            trainer.fit(module, DataLoader(data, BATCH))
    else:
        trainer.fit(module, DataLoader(data, BATCH))
    validate_clustering(module, callback.report)
    assert lost_clusters(module) == {}


def test_clusters_that_are_overwritten_by_hand_are_missed_when_saved(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "last")
    _, module, _ = fitted(lightning, model, data, tmp_path, saving, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    module.load_state_dict(checkpoint["state_dict"])
    with pytest.warns(
        UserWarning, match=r"clusters that were written into the model are gone: 'net\.0\.wei"
    ):
        save_compressed(module, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("steps", "options", "expected"),
    [
        (2, {}, 24),  # two optimizers step in each of 48 batches
        (1, {}, 24),
        (0.5, {}, 24),  # two batches are accumulated by hand
        (2, {"max_steps": 40}, 10),  # ends after 20 batches
        (2, {"max_epochs": -1, "max_steps": 40}, 10),
    ],
)
def test_lightning_raises_the_fraction_over_half_of_the_training(
    lightning: Any,
    model: Digits,
    data: TensorDataset,
    tmp_path: Path,
    steps: float,
    options: dict[str, int],
    expected: int,
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net, self.seen = model.net, []

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            self.seen.append(callback.softq.fraction)
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            if steps >= 1 or batch_idx % 2:
                for optimizer in self.optimizers()[: max(int(steps), 1)]:
                    optimizer.step()
                self.zero_grad()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 2)]

    callback, module = SoftQuantizationCallback(CONFIG), Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
        **{"max_epochs": EPOCHS, **options},
    )
    trainer.fit(module, DataLoader(data, BATCH))
    assert module.seen.index(1.0) == pytest.approx(expected, abs=1)
    assert module.seen == sorted(module.seen)


def test_lightning_raises_the_fraction_with_a_schedule_of_accumulation(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    seen = []

    class Watch(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
            seen.append((trainer.fit_loop.total_batch_idx, trainer.callbacks[0].softq.fraction))

    schedule = lightning.callbacks.GradientAccumulationScheduler({0: 4, 1: 1, 2: 8})
    watch = Watch()
    fitted(lightning, model, data, tmp_path, watch, schedule, accumulate_grad_batches=1)
    assert next(batch for batch, fraction in seen if fraction == 1) in (23, 24, 25)  # of 48


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lightning_with_compiled_networks(
    lightning: Any, model: Digits, plain: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    pretrained, module = copy.deepcopy(model), lightning_module(lightning, model)
    expected = clustered(plain, pretrained)
    module.net = torch.compile(module.net, backend="eager")
    callback = SoftQuantizationCallback(CONFIG)
    trainer = lightning_trainer(lightning, tmp_path, callbacks=[callback])
    trainer.fit(torch.compile(module, backend="eager"), DataLoader(data, BATCH))
    assert [layer.name for layer in callback.report.layers] == ["net.0.weight", "net.2.weight"]
    save_compressed(module, tmp_path / "a.safetensors")
    loaded = load_compressed(tmp_path / "a.safetensors", Digits())
    for (name, x), y in zip(
        loaded.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(x, y, msg=name)


def test_a_callback_can_be_copied_in_mid_training(
    lightning: Any, model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    copies = []

    class Copying(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            copies.append(copy.deepcopy(trainer.callbacks[0]))

    _, module, callback = fitted(lightning, model, data, tmp_path, Copying())
    for other in copies:
        assert other.softq.model is not module
        assert len(other.softq.optimizers) == 1
    assert callback.softq.step == EPOCHS * 8


def test_transformers_trains_as_the_plain_loop(
    model: Digits, plain: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    callback = SoftQuantizationCallback(CONFIG, finalize=False)
    trainer = make_trainer(model, data, tmp_path, callbacks=[callback])
    trainer.train()
    assert_same(model, plain)
    assert callback.softq.step == trainer.state.global_step == EPOCHS * 8


@pytest.mark.parametrize("restore", [False, True])
def test_transformers_resumes_from_its_own_checkpoint(
    model: Digits, plain: Digits, data: TensorDataset, tmp_path: Path, restore: bool
) -> None:
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    expected = clustered(plain, model)
    callback = SoftQuantizationCallback(CONFIG)
    make_trainer(model, data, tmp_path, callbacks=[callback]).train()
    assert_same(model, expected)
    validate_clustering(model, callback.report)

    other = Digits()
    # Where the Trainer restores callbacks, it makes its own from what the checkpoint says.
    callback = SoftQuantizationCallback(ClusteringConfig() if restore else CONFIG)
    trainer = make_trainer(
        other,
        data,
        tmp_path,
        callbacks=[callback],
        restore_callback_states_from_checkpoint=restore,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_same(other, expected)
    assert (callback.report is None) == restore


def test_transformers_may_join_a_training_that_goes_on(
    model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    make_trainer(model, data, tmp_path, callbacks=[]).train()
    callback = SoftQuantizationCallback(CONFIG)
    trainer = make_trainer(model, data, tmp_path, callbacks=[callback])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert callback.softq.step == 16
    validate_clustering(model, callback.report)


def test_transformers_keeps_the_scales_of_channels_bit_for_bit(model: Digits) -> None:
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    config = CONFIG.model_copy(update={"granularity": "channel"})
    callback = SoftQuantizationCallback(config)
    callback.softq = prepare(model, config)
    saved = json.loads(json.dumps(callback.state(), sort_keys=True))  # as the Trainer does
    assert ClusteringConfig.from_dict(saved["args"]["config"]) == config
    restored = prepare(Digits(), config)
    restored.load_state_dict(saved["attributes"]["coupling"])
    for a, b in zip(callback.softq.layers, restored.layers, strict=True):
        assert a.record().keys() == b.record().keys()
        for key in ("number", "sigma", "width", "strength"):
            assert torch.equal(getattr(a.segments, key), getattr(b.segments, key)), key


def test_accelerate_trains_as_the_plain_loop_and_resumes(
    model: Digits, plain: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    accelerate_train(model, data, tmp_path, 0, 1)
    found, softq = accelerate_train(Digits(), data, tmp_path, 1, EPOCHS)
    assert_same(found, plain)
    assert softq.step == EPOCHS * 8
    report = softq.finalize(**CONFIG.cluster_options)
    validate_clustering(found, report)


def test_accelerate_loads_a_state_after_the_clusters_without_attaching(
    model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    accelerate = pytest.importorskip("accelerate")
    from pysoftq.integrations.accelerate import prepare

    accelerator = accelerate.Accelerator(cpu=True)
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model))
    softq = prepare(accelerator, wrapped, CONFIG, optimizer)
    accelerator.save_state(str(tmp_path / "state"))
    softq.finalize(**CONFIG.cluster_options)
    accelerator.load_state(str(tmp_path / "state"))
    assert softq.optimizers == ()
    with pytest.warns(UserWarning, match=r"clusters that were written into the model are gone"):
        save_compressed(wrapped, tmp_path / "a.safetensors")


def test_transformers_clusters_the_best_model(
    model: Digits, data: TensorDataset, tmp_path: Path
) -> None:
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    callback = SoftQuantizationCallback(CONFIG)
    trainer = make_trainer(
        model,
        data,
        tmp_path,
        callbacks=[callback],
        eval_dataset=data,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first, which differs from the last
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-8")
    validate_clustering(model, callback.report)
    assert lost_clusters(model) == {}
    save_compressed(model, tmp_path / "a.safetensors")


# --- all ---
def test_optimizers_that_are_none_of_torch_are_refused(model: Digits) -> None:
    accelerate = pytest.importorskip("accelerate")
    from pysoftq.integrations.accelerate import prepare

    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(TypeError, match=r"`optimizer` must be one of torch\.optim, got dict"):
        prepare(accelerator, model, CONFIG, {})


@pytest.mark.parametrize(
    ("name", "library"),
    [("lightning", "lightning"), ("transformers", "transformers"), ("accelerate", "accelerate")],
)
def test_a_missing_library_is_named_with_its_extra(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"pysoftq.integrations.{name}"
    for loaded in [module, *(x for x in sys.modules if x.split(".")[0] == library)]:
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'pysoftq\[{name}\]'"):
        importlib.import_module(module)


def test_pysoftq_imports_none_of_them() -> None:
    code = (
        "import sys, pysoftq, pysoftq.integrations; pysoftq.ClusteringConfig\n"
        "print(sorted({'lightning', 'transformers', 'accelerate'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_state_of_a_pruned_model_is_json(model: Digits) -> None:
    pytest.importorskip("transformers")
    from pysoftq.integrations.transformers import SoftQuantizationCallback, _restored

    with torch.no_grad():
        model.net[0].weight[:3] = 0
    callback = SoftQuantizationCallback(CONFIG)
    callback.softq = prepare(model, CONFIG)
    state = json.loads(json.dumps(callback.state()))["attributes"]["coupling"]
    zeros = callback.softq.state_dict()["zeros"]
    assert zeros["net.0.weight"].sum() == 3 * 64
    callback.softq.load_state_dict(_restored(state))
    assert torch.equal(callback.softq.state_dict()["zeros"]["net.0.weight"], zeros["net.0.weight"])
