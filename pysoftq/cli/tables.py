"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 10_000  # columns


def print_table(table: Table) -> None:
    """Print a table at its full width: numbers cut short would be worse than wrapped lines."""
    # Names of layers and files are text: `[red]` and `:tada:` stay as they are.
    console = Console(markup=False, emoji=False)
    unbounded = console.options.update(max_width=_UNBOUNDED)
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)
