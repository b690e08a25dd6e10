"""The command line."""

from __future__ import annotations

# Exit code of a run that was interrupted, as a shell gives it for SIGINT.
INTERRUPTED = 130
