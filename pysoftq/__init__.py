"""Soft quantization: neural networks compressed by coupling their weights."""

from __future__ import annotations

__version__ = "0.1.0"
