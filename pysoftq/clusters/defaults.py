"""The paper's values for finding clusters (Table I, steps 3 and 4); needs no torch."""

from __future__ import annotations

DEFAULT_BITS = 7  # clusters are the occupied ones of 2**bits bins
DEFAULT_N_MIN = 10  # clusters of at most so many weights join a larger one
