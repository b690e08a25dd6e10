"""Every script in examples/ runs as it stands, and does what it says."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from encoders import sentences, tiny_encoder
from paths import ROOT

from pysoftq import inspect_compressed

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if "digits" in path.read_text())
SCRIPTS.remove(EXAMPLES / "digits.py")

# Other libraries warn of each other, and of how a small example uses them.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore", "error:::pysoftq")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if script.stem.startswith("with_"):
        pytest.importorskip(script.stem.removeprefix("with_"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # Lightning looks for no cluster
    runpy.run_path(str(script), run_name="__main__")

    printed = capsys.readouterr().out
    before, after = map(float, re.findall(r"^(?:pretrained|compressed): ([\d.]+)%", printed, re.M))
    assert before - 5 < after <= 100
    assert re.search(r"override '.*4\.weight': h = 0\.1, w = 0\.3 ", printed)
    mean = next(line.split() for line in printed.splitlines() if line.startswith("  mean "))
    assert float(mean[-2]) < 4.2
    assert (tmp_path / "digits.safetensors").stat().st_size < 5_490 * 4 / 3
    assert inspect_compressed(tmp_path / "digits.safetensors")


def test_a_sentence_encoder_is_compressed_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("onnxscript")
    (tmp_path / "sentences.txt").write_text("\n".join(sentences(300)))
    options = {
        "--model": tiny_encoder(tmp_path),
        "--sentences": tmp_path / "sentences.txt",
        "--bytes": 14_000,
        "--steps": 60,
        "--lr": 3e-3,
    }
    monkeypatch.chdir(tmp_path)
    script = EXAMPLES / "sentence_encoder.py"
    given = [str(one) for option in options.items() for one in option]
    monkeypatch.setattr(sys, "argv", [str(script), *given])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    size, cosine = re.findall(r"^compressed: ([\d,]+) bytes, ([\d.]+)$", printed, re.M)[0]
    assert (tmp_path / "encoder.safetensors").stat().st_size == int(size.replace(",", ""))
    assert int(size.replace(",", "")) <= 14_000
    assert float(cosine) > 0.9
    assert re.search(r"encoder\.onnx: .* decisions agree", printed)


def test_the_readme_lists_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w.]+)\)", text)) == {
        path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".yaml")
    }
