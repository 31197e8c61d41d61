"""Benchmarks: ours against the peer's code on the same input, with targets. ``python -m benchmarks --list``."""
