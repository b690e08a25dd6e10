"""The command line."""

from __future__ import annotations

# Exit codes besides 0, 1 (a failure) and 2 (wrong usage). That of an interrupted run is the one
# that a shell gives for SIGINT; that of warnings is used with --strict, and for a target not met.
INTERRUPTED, WARNED = 130, 3
