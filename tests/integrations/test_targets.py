"""Compression to a target in the loops of other libraries: the network of the plain loop."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import (
    ACCUMULATE,
    BATCH,
    CLIP,
    EPOCHS,
    QUICK,
    Digits,
    accelerate_compress,
    batches,
    lightning_module,
    lightning_trainer,
    load_data,
    make_optimizer,
    make_trainer,
)

from pysoftq import Compressor, Target
from pysoftq.errors import QualityWarning

# Other libraries warn of each other; what pysoftq warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::pysoftq")

TARGET = Target(bytes=1_700)
STEPS = EPOCHS * 8


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    return load_data()


def pretrained() -> Digits:
    torch.manual_seed(0)
    return Digits()


@pytest.fixture(scope="module")
def plain(data: TensorDataset) -> tuple[Digits, dict[str, Any]]:
    """Compressed in the plain loop, and its report."""
    model = pretrained()
    optimizer, compressor = make_optimizer(model), Compressor(model, TARGET, QUICK)
    compressor.attach(optimizer, total_steps=STEPS)
    for _ in range(EPOCHS):
        for (images, labels), step in batches(data):
            (model(images, labels)["loss"] / ACCUMULATE).backward()
            if step:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
    return model, compressed_report(compressor.finalize())


def compressed_report(report: Any) -> dict[str, Any]:
    """Without the names, which have prefixes in some trainers."""
    assert report.met
    return {key: report.to_dict()[key] for key in ("rungs", "step", "phase", "met")}


def assert_same(found: nn.Module, plain: tuple[Digits, dict[str, Any]], report: Any) -> None:
    expected = plain[0].state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert compressed_report(report) == plain[1]


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # no cluster is looked for
    return pytest.importorskip("lightning.pytorch")


def test_lightning(lightning: Any, plain: Any, data: TensorDataset, tmp_path: Path) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module = lightning_module(lightning, pretrained())
    callback = SoftQuantizationCallback(QUICK, target=TARGET)
    trainer = lightning_trainer(
        lightning, tmp_path, callbacks=[callback, saving], enable_checkpointing=True
    )
    trainer.fit(module, DataLoader(data, BATCH))
    assert_same(module, plain, callback.report)

    # Of before the compression, as a checkpoint of the coupling is.
    content = torch.load(tmp_path / "epoch=0.ckpt", weights_only=False)
    content["state_dict"] = lightning_module(lightning, pretrained()).state_dict()
    torch.save(content, tmp_path / "before.ckpt")
    with pytest.warns(QualityWarning, match="is not the compressed network any more"):
        trainer.test(module, DataLoader(data, BATCH), ckpt_path=tmp_path / "before.ckpt")

    for epoch in range(EPOCHS - 1):
        other = lightning_module(lightning, Digits())
        callback = SoftQuantizationCallback(QUICK, target=TARGET)
        trainer = lightning_trainer(lightning, tmp_path, callbacks=[callback])
        trainer.fit(other, DataLoader(data, BATCH), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert_same(other, plain, callback.report)


def test_transformers(plain: Any, data: TensorDataset, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    model = pretrained()
    callback = SoftQuantizationCallback(QUICK, target=TARGET)
    make_trainer(model, data, tmp_path, callbacks=[callback]).train()
    assert_same(model, plain, callback.report)

    for step, restore in ((8, False), (16, False), (16, True)):
        other = Digits()
        callback = SoftQuantizationCallback(QUICK, target=TARGET)
        trainer = make_trainer(
            other,
            data,
            tmp_path,
            callbacks=[callback],
            restore_callback_states_from_checkpoint=restore,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        (callback,) = (
            own
            for own in trainer.callback_handler.callbacks
            if isinstance(own, SoftQuantizationCallback)
        )
        assert_same(other, plain, callback.report)


def test_accelerate(plain: Any, data: TensorDataset, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    accelerate_compress(pretrained(), data, tmp_path, 0, 1, TARGET)
    accelerate_compress(Digits(), data, tmp_path, 1, 2, TARGET)
    found, compressor = accelerate_compress(Digits(), data, tmp_path, 2, EPOCHS, TARGET)
    assert_same(found, plain, compressor.finalize())


def test_accelerate_goes_back_to_an_earlier_state(
    plain: Any, data: TensorDataset, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from pysoftq.integrations.accelerate import _Compression

    model = pretrained()
    optimizer, compressor = make_optimizer(model), Compressor(model, TARGET, QUICK)
    compressor.attach(optimizer, total_steps=STEPS)
    saved = copy.deepcopy(_Compression(compressor, None).state_dict())
    for _ in range(STEPS):
        model.net[0].weight.grad = torch.ones_like(model.net[0].weight)
        model.net[2].weight.grad = torch.ones_like(model.net[2].weight)
        optimizer.step()
    assert compressor.phase == "done"
    _Compression(compressor, None).load_state_dict(saved)
    assert (compressor.phase, compressor.report().step) == ("coupling", 0)
    assert compressor.report().layers is None
    assert compressor.optimizer is optimizer
    with pytest.raises(ValueError, match="the state lacks softq"):
        _Compression(compressor, None).load_state_dict(
            {name: value for name, value in saved.items() if name != "softq"}
        )
    assert compressor.optimizer is optimizer


def test_what_a_target_excludes(lightning: Any, data: TensorDataset, tmp_path: Path) -> None:
    from pysoftq.integrations.lightning import SoftQuantizationCallback

    with pytest.raises(ValueError, match="`finalize` must be True with a target"):
        SoftQuantizationCallback(QUICK, target=TARGET, finalize=False)
    with pytest.raises(ValueError, match="`evaluate` requires a target"):
        SoftQuantizationCallback(QUICK, evaluate=lambda: 1.0)

    class TwoOptimizers(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = pretrained().net

        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise AssertionError

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 2)]

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SoftQuantizationCallback(QUICK, target=TARGET)],
        default_root_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="a target requires one optimizer, got 2"):
        trainer.fit(TwoOptimizers(), DataLoader(data, BATCH))
    endless = lightning_trainer(
        lightning,
        tmp_path,
        max_epochs=-1,
        callbacks=[SoftQuantizationCallback(QUICK, target=TARGET)],
    )
    with pytest.raises(ValueError, match="the number of steps is not known, within which a"):
        endless.fit(lightning_module(lightning, pretrained()), DataLoader(data, BATCH))


def test_transformers_restores_targets_from_json() -> None:
    pytest.importorskip("transformers")
    from pysoftq.integrations.transformers import SoftQuantizationCallback

    callback = SoftQuantizationCallback(QUICK, target=[Target(bits=3.0), Target(bits=2.0)])
    saved = json.loads(json.dumps(callback.state(), sort_keys=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SoftQuantizationCallback(**saved["args"]).targets == callback.targets
