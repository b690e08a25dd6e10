"""The networks that a run compares: their names and measurements."""

from __future__ import annotations

from dataclasses import dataclass

PRETRAINED, SOFT = "pretrained", "soft"
REFINED = "soft, refined"  # the network of the compressed file
PAPER = "soft, refined as in the paper"


def clusters_name(bits: int | None) -> str:
    """The name of the network with the clusters of 2**bits bins, or at the coupling's scale."""
    return "soft, clusters" if bits is None else f"soft, {bits}-bit clusters"


@dataclass(frozen=True)
class NetworkRow:
    """One network of the summary; bits are means over the coupled weights, None where float32.

    ``accuracy`` is the share of right predictions in the test data, of images or of the next
    tokens, and ``loss`` their mean cross-entropy in nats, None in reports of earlier versions.
    ``codebook_bytes`` is what the clusters' values take, as they are in memory.
    """

    name: str
    accuracy: float
    bits: float | None
    container_bits: float | None
    entropy_bits: float | None
    bytes_on_disk: int
    loss: float | None = None
    codebook_bytes: int = 0
