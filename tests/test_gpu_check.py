"""The check of a GPU machine, rehearsed without one: its stages, its results, how it stops."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from paths import ROOT

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import gpu_probe, gpu_smoke, targets
from benchmarks.gpu_smoke import Check
from benchmarks.measures import Measure, Spread

SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
STAGES = ("versions", "smoke", "memcheck", "tests", "quick", "rest", "races", "full")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
# Without it, a rehearsal compiles the extension, for which an installation brings no tools.
emulation = pytest.mark.skipif(
    importlib.util.find_spec("pysoftq._cuda_emulated") is None,
    reason="the CUDA kernels are not built for the CPU",
)

# What a Python of the test does in place of loading the package, so that only the script is tested.
LOADING = {
    '*"import torch"*': "echo 'torch: of the test'",
    '*"import pysoftq._core"*': "echo 'extension: of the test'",
}
SEQUENCE = '"-m benchmarks.gpu_smoke "*sequence'
POTENTIAL = '"-m benchmarks "*potential'


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Of a check whose temporary files are in a folder of the test's own."""
    temporary = folder / "temporary files"
    temporary.mkdir()
    return {**os.environ, "TMPDIR": str(temporary), "PYTHON": sys.executable, **variables}


def python(folder: Path, commands: dict[str, str]) -> str:
    """A Python that runs other commands where its arguments fit these patterns of the shell."""
    cases = "".join(f"{pattern}) {command} ;;\n" for pattern, command in commands.items())
    text = f'#!/bin/bash\ncase "$*" in\n{cases}*) exec "{sys.executable}" "$@" ;;\nesac\n'
    return str(executable(folder / "tools" / "python of the test", text))


def sanitizer(folder: Path, **tools: str) -> str:
    """A PATH with a compute-sanitizer that does this for some of its tools."""
    cases = "".join(f"{name}) {what} ;;\n" for name, what in tools.items())
    text = f'#!/bin/bash\ncase $2 in\n{cases}*) echo "$2 $6" ;;\nesac\n'
    path = executable(folder / "tools" / "compute-sanitizer", text)
    return f"{path.parent}:{os.environ['PATH']}"


def states(summary: str) -> dict[str, str]:
    """What the summary says of each stage, without the seconds."""
    rows = [line for line in summary.splitlines() if line.split(" ")[0] in STAGES]
    return {row.split()[0]: row[10:21].strip() for row in rows}


def archived(output: Path) -> dict[str, str]:
    with tarfile.open(output / "gpu-check.tar.gz") as archive:
        files = [member for member in archive if member.isfile()]
        return {
            member.name.removeprefix("gpu-check/"): archive.extractfile(member).read().decode()
            for member in files
        }


def check(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, dict[str, str]]:
    """Exit code, summary and archived files of a rehearsal."""
    output = folder / "what comes back"
    done = subprocess.run(
        [SCRIPT, "--rehearse", *arguments],
        env=environment(folder, OUT=str(output), **variables),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    summary = (output / "summary.txt").read_text()
    assert summary in done.stdout, done.stderr
    assert {path.name for path in output.iterdir()} == {"summary.txt", "gpu-check.tar.gz"}
    assert list((folder / "temporary files").iterdir()) == []
    files = archived(output)
    assert "versions-probe.log" in {Path(name).name for name in files}
    return done.returncode, summary, files


def running(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(process.name))
    return found


# ------------------------------------------------------------------------------------- the script
@pytest.mark.long
@linux
@emulation
def test_rehearsal_runs_every_stage(tmp_path: Path) -> None:
    # Loading torch takes most of the time; the last stage brings what a GPU would.
    share = {"value": {"median": 0.7, "first": 0.6, "third": 0.8}, "unit": ""}
    measures = {"bandwidth/1e8/Gaussian/share of STREAM": share}
    results = json.dumps({"environment": {"device": "NVIDIA"}, "measures": measures})
    commands = {
        '*"import torch"*': LOADING['*"import torch"*'],
        POTENTIAL: f"echo '{results}' > '{tmp_path}/what comes back/running.json'",
    }
    code, summary, files = check(tmp_path, PYTHON=python(tmp_path, commands))
    without = (
        {} if shutil.which("compute-sanitizer") else {"memcheck": "skipped", "races": "skipped"}
    )
    assert states(summary) == dict.fromkeys(STAGES, "passed") | without, summary
    assert code == 0
    assert "REHEARSAL without a GPU" in summary
    assert "extension: " in summary
    assert len(summary.splitlines()) < 40
    assert "70 % met (Gaussian)" in summary
    assert summary.count("not measured") == len(targets.CUDA) - 1  # times of the CPU do not count
    assert files["summary.txt"] == summary
    assert "ok sequence: 64 bins in between" in files["logs/smoke-sequence.log"]
    assert "1 passed" in files["logs/tests-test_cuda.log"]
    assert json.loads(files["results/quick-density.json"])["measures"]
    assert "| torch.histc |" in files["results/quick-density.md"]


@linux
@emulation
def test_goes_on_after_a_failure_and_tells_its_first_line(tmp_path: Path) -> None:
    crash = "echo 'ok sequence: a'; echo 'FAILED sequence: b'; echo 'FAILED sequence: c'; exit 1"
    code, summary, files = check(
        *(tmp_path, "--stages", "smoke,memcheck,races"),
        PYTHON=python(tmp_path, LOADING | {SEQUENCE: crash}),
        PATH=sanitizer(
            tmp_path,
            memcheck="echo 'Error: Device not supported'; exit 1",
            racecheck="echo '========= SANITIZER'; echo '========= Error: Race reported'; exit 9",
        ),
    )
    assert code == 1
    assert states(summary) == {
        **dict.fromkeys(STAGES, "skipped"),
        "versions": "passed",
        "smoke": "FAILED",
        "races": "FAILED",
    }
    assert "  smoke-sequence: FAILED sequence: b\n" in summary
    assert "compute-sanitizer: device not supported\n" in summary
    assert "  1 of 2 steps passed; races-racecheck: ========= Error: Race reported\n" in summary
    assert summary.count("left out by --stages") == 4
    assert files["logs/races-synccheck.log"] == "synccheck 9\n"


@linux
@emulation
def test_a_step_that_hangs_is_out_of_time_and_the_next_one_begins(tmp_path: Path) -> None:
    hang, crash = "echo begun; sleep 300", "echo begun; kill -SEGV $$"
    tools = sanitizer(tmp_path, racecheck=hang, memcheck=crash)
    short = """[[ "$*" != *compute-sanitizer* ]] || set -- "$1" "$2" 2 "${@:4}"\n"""
    text = f'#!/bin/bash\n{short}exec "{shutil.which("timeout")}" "$@"\n'
    executable(tmp_path / "tools" / "timeout", text)
    code, summary, files = check(
        tmp_path, "--stages", "memcheck,races", PYTHON=python(tmp_path, LOADING), PATH=tools
    )
    assert code == 1
    assert "  memcheck-memcheck: ended by signal 11: begun\n" in summary
    assert states(summary)["memcheck"] == "FAILED"
    assert states(summary)["races"] == "out of time"
    assert "  1 of 2 steps passed; races-racecheck: after: begun\n" in summary
    assert files["logs/races-synccheck.log"] == "synccheck 9\n"


@linux
@emulation
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_mid_run_it_leaves_what_it_has(tmp_path: Path, number: signal.Signals) -> None:
    output, printed = tmp_path / "out", tmp_path / "printed"
    waiting = python(tmp_path, LOADING | {SEQUENCE: "echo begun; sleep 300 & wait"})
    with printed.open("w") as stdout:
        process = subprocess.Popen(
            [SCRIPT, "--rehearse", output],
            env=environment(tmp_path, PYTHON=waiting),
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    log = output / "running.log"
    deadline = time.monotonic() + 300
    try:
        while not (log.is_file() and "begun" in log.read_text()):
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(120)
        left = running(process.pid)
    finally:
        for member in running(process.pid):  # as what lends a machine does after a command
            os.kill(member, signal.SIGKILL)
    summary, files = (output / "summary.txt").read_text(), archived(output)
    assert "extension: of the test" in files["logs/versions-extension.log"]
    assert states(summary)["versions"] == "passed"
    assert states(summary)["full"] == "not begun"
    if number == signal.SIGKILL:
        assert log.read_text() == "begun\n"  # of the step in progress
        return
    assert code == 128 + number
    assert states(summary)["smoke"] == "interrupted"
    assert summary in printed.read_text()
    assert files["logs/smoke-sequence.log"].startswith("begun\n")
    assert {path.name for path in output.iterdir()} == {"summary.txt", "gpu-check.tar.gz"}
    assert list((tmp_path / "temporary files").iterdir()) == []
    assert left == []


@linux
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "soon"], "`--budget` must be >= 30 seconds, got 'soon'"),
        (["--stages", "smoke,fire"], "unknown stage 'fire': expected some of versions smoke"),
        (["--fast"], "unknown option --fast"),
        (["--budget"], "--budget needs a value"),
        (["a", "b"], "one folder for the results, got 'a' and 'b'"),
        (["/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"gpu_check.sh: {message}")
    assert list(tmp_path.iterdir()) == []


@linux
def test_without_a_device_every_stage_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    done = subprocess.run(
        [SCRIPT, "out"],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert done.returncode == 1
    assert states(summary) == dict.fromkeys(STAGES, "skipped") | {"versions": "FAILED"}
    assert summary.count("no CUDA device") == len(STAGES)
    assert "device: none (" in summary


# --------------------------------------------------------------------------------- its Python parts
@pytest.mark.parametrize("case", sorted({*gpu_smoke.CASES} - {*gpu_smoke.ON_A_DEVICE_ONLY}))
def test_smoke_in_emulation(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pysoftq._cuda_emulated", exc_type=ModuleNotFoundError)
    assert gpu_smoke.main(["--emulated", case]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"ok {case}: ") for line in lines)
    assert last == f"{case}: {len(lines)} checks passed"


def test_smoke_goes_on_after_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(_: object):
        yield Check("integers", torch.tensor([1, 2, 3]), [1, 5, 3])
        yield Check("shape", torch.ones(3), torch.ones(2))
        yield Check("near", 1.0 + 1e-13, 1.0, 1e-12)
        yield Check("far", float("nan"), 1.0, 1e-12)
        raise RuntimeError("launch failed: invalid\nand more")

    monkeypatch.setattr(gpu_smoke, "emulated", lambda size: None)
    monkeypatch.setattr(gpu_smoke, "CASES", {"a": wrong, "b": lambda _: iter(())})
    assert gpu_smoke.main(["--emulated"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAILED a: integers: 1 of 3 differ, at 1: 2 instead of 5",
        "FAILED a: shape: shape (3,) instead of (2,)",
        "ok a: near",
        "FAILED a: far: 1 of 1 differ, at 0: nan instead of 1.0",
        "FAILED a: RuntimeError: launch failed: invalid",
        "a: 4 of 5 checks failed",
        "b: 0 checks passed",
    ]


def test_smoke_runs_the_kernels_or_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(RuntimeError, match="not the kernels"):
        gpu_smoke.main(["density"])


def test_probe_tells_why_there_is_no_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Library:
        @staticmethod
        def cuInit(flags: int) -> int:
            return 100

        @staticmethod
        def cuGetErrorString(status: int, text: object) -> int:
            text._obj.value = b"no CUDA-capable device is detected"
            return 0

    monkeypatch.setattr(gpu_probe.ctypes, "CDLL", lambda name: Library)
    assert gpu_probe.main() == 3
    assert capsys.readouterr().out == "device: none (cuInit: no CUDA-capable device is detected)\n"


def test_targets_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str, machine: dict, share: dict[str, float]) -> str:
        measures = {
            f"bandwidth/1e8/{state}/share of STREAM": asdict(Measure(Spread.exactly(value), ""))
            for state, value in share.items()
        }
        (tmp_path / name).write_text(json.dumps({"environment": machine, "measures": measures}))
        return str(tmp_path / name)

    gpu = {"device": "NVIDIA"}
    quick = write("quick.json", gpu, {"Gaussian": 0.5, "9 clusters": 0.9})
    full = write("full.json", gpu, {"Gaussian": 0.7})
    cpu = write("cpu.json", {}, {"one bin": 0.1})
    found = {}
    for files in ([], [quick], [quick, full, cpu]):
        assert targets.main(files) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(targets.CUDA)
        found[len(files)] = lines[0].partition("  ")[0]
    assert found == {0: "not measured", 1: "50 % missed (Gaussian)", 3: "70 % met (Gaussian)"}
