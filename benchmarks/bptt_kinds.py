"""Memory and time of gradients through relaxations with 7net-0.

    python -m benchmarks.bptt_kinds [--device cpu] [--threads 2] [--json bptt.json] [--only memory time kinds]

(a) peak memory of adjoint and unrolled against the number of steps, (b) time of adjoint against unrolled at 20
steps, (c) all gradient kinds side by side on one converged relaxation in float64, compared with unrolled.
Memory is measured in a fresh process each: the peak above what is in use after loading and one evaluation. On a CPU it
is resident memory, of which glibc keeps some after it was freed; with --return-memory it gives back at once what is
larger than 64 KiB (slower), so that only what is in use counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import FIREStep, GradientDescentStep
from ase_finetune.trajectories import FixedPointSolver, GradientOptions
from benchmarks.bptt import flat_gradient, gradient, plain_autograd
from benchmarks.paired import compare, machine
from benchmarks.suite import EXAMPLES, ROOT
from benchmarks.workers import MIB, Peak

METHODS = {"gradient-descent": GradientDescentStep(step_size=0.01), "fire": FIREStep()}
STEPS = {"adjoint": (10, 50, 200), "unrolled": (10, 20, 50)}
KINDS = ("unrolled", "adjoint", "truncated", "implicit", "guided")
#: Of (c): what counts as converged (eV/Å), and steps at most.
CONVERGED, LONGEST = 2e-3, 200


def silicon() -> tuple[Atoms, Atoms]:
    """Si8 with displaced atoms, and another one to be compared with."""
    start, target = bulk("Si", cubic=True), bulk("Si", cubic=True)
    start.rattle(0.1, seed=1)
    target.rattle(0.05, seed=2)
    return start, target


def crystal() -> tuple[Atoms, Atoms]:
    """KCdSb, six atoms, near the DFT structure: a true minimum with free positions and a free cell."""
    target = read(EXAMPLES / "crystal_pairs_relaxed.extxyz", index=10)
    start = target.copy()
    start.set_cell(1.01 * target.cell, scale_atoms=True)
    start.rattle(0.02, seed=3)
    return start, target


def measure(task: dict[str, Any]) -> None:
    """Run one task in this process, and print peak memory and time as JSON; the gradient goes into a file."""
    torch.set_num_threads(task["threads"])
    calculator = FinetunedCalculator("7net-0", device=task["device"], dtype=task["dtype"])
    pair = silicon() if task["structure"] == "silicon" else crystal()
    calculator.calculate(pair[0], ["energy", "forces", "stress"])
    options = {"steps": task["steps"], "cell": task["structure"] == "crystal", "fmax": task.get("fmax")}
    options["gradient"] = GradientOptions(
        task["kind"], window=5, solver=FixedPointSolver(fmax=task.get("fmax") or CONVERGED)
    )
    peak = Peak(calculator.potential.device)
    start = time.perf_counter()
    run = gradient(calculator.potential, pair[:1], pair[1:], options, METHODS[task["method"]])
    flat = flat_gradient(calculator.potential)
    seconds = time.perf_counter() - start
    if task.get("gradient_file"):
        np.save(task["gradient_file"], flat.numpy())
    print(json.dumps({"peak_mib": peak.read() / MIB, "seconds": seconds, "steps": run.steps[0]}))


def fresh(**task: Any) -> dict[str, Any]:
    """The task and its measures, from a new process."""
    command = [sys.executable, "-m", "benchmarks.bptt_kinds", "--measure", json.dumps(task)]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0:  # out of memory, most likely
        print(f"{task['kind']} at {task['steps']} steps ended with status {answer.returncode}", flush=True)
        return task | {"peak_mib": float("nan"), "seconds": float("nan")}
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return task | measured


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """(a)"""
    print("\n(a) peak memory in MiB, Si8, float32")
    rows, ratios = [], {}
    for method in METHODS:
        peaks = {}
        for kind, counts in STEPS.items():
            for steps in counts:
                row = fresh(method=method, kind=kind, steps=steps, structure="silicon", **common(arguments))
                rows.append(row)
                peaks[kind, steps] = row["peak_mib"]
                print(
                    f"  {method:18s}{kind:10s}{steps:5d} steps{row['peak_mib']:10.1f}{row['seconds']:9.1f} s",
                    flush=True,
                )
        ratios[method] = peaks["adjoint", 200] / peaks["adjoint", 10]
        print(f"  {method:18s}adjoint, 200 steps / 10 steps: {ratios[method]:.3f} (target: at most 1.15)", flush=True)
    return {"memory": rows, "memory_ratio": ratios}


def timing(arguments: argparse.Namespace) -> dict[str, Any]:
    """(b)"""
    print("\n(b) forward and backward, 20 steps, Si8, float32: adjoint (ours) against the graphs of all steps (peer)")
    calculator = FinetunedCalculator("7net-0", device=arguments.device)
    potential, (start, target), ratios = calculator.potential, silicon(), {}
    for name, method in METHODS.items():
        adjoint, unrolled = (
            lambda kind=kind, method=method: gradient(
                potential, [start], [target], {"steps": 20, "gradient": kind}, method
            )
            for kind in ("adjoint", "unrolled")
        )
        # `unrolled` relaxes without graphs before, to find out what explodes; a loop of one's own need not.
        plain = functools.partial(plain_autograd, potential, [start], [target], 20, method)
        for peer, work in (("unrolled", unrolled), ("plain loop", plain)):
            found = compare(adjoint, work, repeats=arguments.repeats)
            ratios[f"{name}, {peer}"] = found.ratio
            print(f"  {name}, against {peer}: {found.medians[0]:.3f} s / {found.medians[1]:.3f} s = {found.ratio:.3f}")
    print("  target: at most 1.4", flush=True)
    return {"time_ratio": ratios}


def kinds(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """(c)"""
    print(f"\n(c) KCdSb, cell and positions, FIRE to {CONVERGED:g} eV/Å, float64; windows of 5 steps")
    print(f"  {'':12s}{'s':>8s}{'peak MiB':>10s}{'|g - g0|/|g0|':>15s}{'cosine':>9s}   g0 is that of unrolled")
    rows: list[dict[str, Any]] = []
    options = {"structure": "crystal", "method": "fire", "steps": LONGEST, "fmax": CONVERGED}
    reference = None
    for kind in KINDS:
        file = folder / f"{kind}.npy"
        if kind in ("implicit", "guided"):
            options |= {"steps": LONGEST, "fmax": CONVERGED}
        row = fresh(**options, kind=kind, gradient_file=str(file), **(common(arguments) | {"dtype": "float64"}))
        if kind == "unrolled" and row.get("steps", LONGEST) < LONGEST:
            # The others make as many; only fixed points have to be told what is converged.
            options |= {"steps": row["steps"], "fmax": None}
        if file.exists():
            found = np.load(file)
            reference = found if kind == "unrolled" else reference
            if reference is not None:
                row["deviation"] = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
                row["cosine"] = float(found @ reference / np.linalg.norm(found) / np.linalg.norm(reference))
        del row["gradient_file"]
        rows.append(row)
        ends = f"{row.get('deviation', np.nan):15.1e}{row.get('cosine', np.nan):9.4f}"
        print(f"  {kind:12s}{row['seconds']:8.1f}{row['peak_mib']:10.1f}{ends}", flush=True)
    print("  guided adds a loss on the structure after its window, so its gradient is meant to be another one")
    return {"kinds": rows}


def common(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"device": arguments.device, "dtype": "float32", "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="of the timing")
    parser.add_argument("--only", nargs="+", default=["memory", "time", "kinds"], choices=["memory", "time", "kinds"])
    parser.add_argument("--return-memory", action="store_true", help="count memory in use, not what glibc keeps")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # one measurement in a fresh process
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure)
        return
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.return_memory:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by the processes that measure, not by this one
    print(machine() + (", freed memory returned at once" if arguments.return_memory else ""))
    results: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads(), "device": arguments.device}
    results["return_memory"] = arguments.return_memory
    if "memory" in arguments.only:
        results |= memory(arguments)
    if "time" in arguments.only:
        results |= timing(arguments)
    if "kinds" in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            results |= kinds(arguments, Path(folder))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
