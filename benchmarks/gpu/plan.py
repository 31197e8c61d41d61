"""What the command line knows without any package: places, stages and models."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Stages in the order of what matters, and their shares of the time; what one does not need goes to those after it.
STAGES = {"right": 0.22, "fast": 0.34, "memory": 0.10, "profile": 0.10, "grow": 0.10, "science": 0.14}

#: Where their rows are: modules with a function ``tasks``.
MODULES = {
    "right": "benchmarks.gpu.right",
    "fast": "benchmarks.gpu.fast",
    "memory": "benchmarks.gpu.memory",
    "profile": "benchmarks.gpu.profiling",
    "grow": "benchmarks.gpu.grow",
    "science": "benchmarks.gpu.science",
}

#: Of the stage *right*; the first one is checked most thoroughly.
MODELS, QUICK_MODELS = ("7net-0", "mace", "7net-l3i5"), ("7net-0", "tiny-mace")
