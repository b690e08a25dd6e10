"""Timings of the core beside other ways to do the same work: ``python -m benchmarks --help``."""
