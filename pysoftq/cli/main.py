"""The command ``pysoftq``: imports the module of a command when it is called."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from difflib import get_close_matches

import click

from pysoftq import __version__
from pysoftq.cli import INTERRUPTED
from pysoftq.cli.processes import is_quiet
from pysoftq.cli.terminal import complete_environment, one_line, robust_streams, short_warnings

# command -> its line in the help; pysoftq/cli/<command>.py defines a click command of that name
COMMANDS = {
    "compare": "Compare soft quantization with other methods: accuracy against bits.",
    "compress": "Compress a network by soft quantization.",
    "dynamics": "Show how the weights of a run gather in clusters (Figs. 1, 2E, 2F).",
    "energy": "Print the interaction energy of each layer of a weight file.",
    "evaluate": "Measure the accuracy or perplexity of a compressed file.",
    "export": "Convert a compressed file to ONNX, Core ML or a plain state dict.",
    "flatness": "Measure how flat the loss is towards the quantized networks (Fig. 3).",
    "inspect": "Show the content of a compressed file.",
    "meanfield": "Compare the mean field with the exact sum for several numbers of bins.",
    "phase": "Draw the phase diagram of a sweep over h and w (Figs. 2, 5, 6).",
    "pick": "Choose a network of a front, or recommend h and w from a sweep.",
    "report": "Write one HTML page about a run or a sweep.",
    "runs": "List runs with their state and results.",
    "scaling": "Fit the interaction energy against the size of the layers (Fig. 4).",
    "sweep": "Run a grid over h and w with several seeds (Fig. 2).",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pysoftq.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A command by its name; of one that is misspelt, the error names the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if close := get_close_matches(args[0], COMMANDS, n=1):
                ctx.fail(f"{error.message} Did you mean {close[0]!r}?")
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


EXAMPLES = """\b
Examples:
  pysoftq compress                    # digits, from pretraining to figures
  pysoftq compress --dataset cifar10 --model resnet20 --weights resnet20.th
  pysoftq compress --resume runs/1    # resume an interrupted run
  pysoftq inspect runs/1/compressed.safetensors
"""


def print_config(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print how the package was built and what it runs on, and end."""
    del parameter
    if value:
        from pysoftq import show_config

        show_config()
        ctx.exit()


@click.group(
    cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="pysoftq")
@click.option(
    "--show-config",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_config,
    help="Show versions, build and devices, and exit.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:
    """Soft quantization: neural networks compressed by coupling their weights."""
    del debug


def main() -> None:
    """Run the command line; a failure becomes one line and an exit code.

    Neither the encoding of the terminal, a closed pipe nor the environment make a command fail.
    """
    # Threads that spin while they wait cost a run a factor of three or more wherever another
    # process uses the same cores. To be set before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Torch takes fresh memory for every large tensor: in huge pages, that costs a tenth less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with robust_streams(), complete_environment(), short_warnings():
        _run()


def _run() -> None:
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        cli.main(arguments, prog_name="pysoftq", standalone_mode=False)
    except click.ClickException as error:
        if not is_quiet():
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - whatever it is, the user sees one line
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"error: {one_line(error)}", err=True)
        sys.exit(1)
