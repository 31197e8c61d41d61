"""Values of rows that compare two sides."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.stage import Bench
from benchmarks.paired import Comparison


def paired(ours: list[float], peer: list[float], bench: Bench, goal: float | None, **more: Any) -> dict[str, Any]:
    """Medians, their ratio and whether it is as good as the goal, which is that of a GPU.

    Parameters
    ----------
    ours, peer
        What both sides measured, repeat by repeat.
    bench
        Where.
    goal
        Largest ratio that is good enough, where there is one.
    **more
        ``unit``, ``against``, ``notes``.
    """
    measured = Comparison(ours, peer)
    medians, ratio = measured.medians, measured.ratio
    met = None if goal is None or not bench.on_gpu else bool(ratio <= goal)
    found = {"ours": medians[0], "peer": medians[1], "ratio": ratio, "goal": goal, "met": met}
    return found | {"ours_all": ours, "peer_all": peer, **more}
