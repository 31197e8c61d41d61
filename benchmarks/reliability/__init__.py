"""Soak checks: dynamics, memory, versions. ``python -m benchmarks.reliability.md --data FOLDER``."""
