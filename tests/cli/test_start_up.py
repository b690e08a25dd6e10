"""What the command line does not import: torch takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import FIXTURES

HELP = """
import sys
from click.testing import CliRunner
from pysoftq.cli.main import COMMANDS, cli

for arguments in ([], *([command] for command in COMMANDS)):
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    loaded = {"torch", "scipy", "matplotlib"} & sys.modules.keys()
    assert not loaded, f"pysoftq {' '.join(arguments)} --help imports {loaded}"
"""

INSPECT = """
import sys
from pysoftq.cli.main import cli

cli(sys.argv[1:], standalone_mode=False)
assert "torch" not in sys.modules
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True
    )


def test_no_help_imports_torch() -> None:
    result = run(HELP)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["network", "tensors"])
def test_inspection_does_without_torch(name: str) -> None:
    path: Path = FIXTURES / f"version-1-{name}.safetensors"
    result = run(INSPECT, "inspect", str(path), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bytes_on_disk"] == path.stat().st_size
