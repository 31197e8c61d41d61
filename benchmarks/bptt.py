"""Memory and time of gradients through relaxations with 7net-0.

    python benchmarks/bptt.py [--device cpu] [--threads 2] [--json bptt.json] [--only memory time kinds]

(a) peak memory of adjoint and unrolled against the number of steps, (b) time of adjoint against unrolled at 20
steps, (c) all gradient kinds side by side on one converged relaxation in float64, compared with unrolled.
Memory is measured in a fresh process each: the peak above what is in use after loading and one evaluation. On a CPU it
is resident memory, of which glibc keeps some after it was freed; with --return-memory it gives back at once what is
larger than 64 KiB (slower), so that only what is in use counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
from paired import compare, machine

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import FIREStep, GradientDescentStep
from ase_finetune.optimize.relaxation import Relaxation
from ase_finetune.trajectories import FixedPointSolver, GradientOptions, Rollout, StructureLoss, Structures, rollout

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
METHODS = {"gradient-descent": GradientDescentStep(step_size=0.01), "fire": FIREStep()}
STEPS = {"adjoint": (10, 50, 200), "unrolled": (10, 20, 50)}
KINDS = ("unrolled", "adjoint", "truncated", "implicit", "guided")
#: Of (c): what counts as converged (eV/Å), and steps at most.
CONVERGED, LONGEST = 2e-3, 200
MIB = 2**20


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


def gradient(potential: Any, pair: tuple[Atoms, Atoms], options: dict[str, Any], method: Any) -> Rollout:
    """Forward and backward once; the gradient by the parameters is left in them."""
    run = rollout([pair[0]], potential, method, **options)
    if run.structures is None:
        raise SystemExit(f"the relaxation failed: {run.failed}")
    wanted = Structures.from_atoms([pair[1]], device=potential.device)
    potential.zero_grad()
    total = StructureLoss()(run.structures, wanted).sum()
    if run.guide is not None:
        total = total + StructureLoss()(run.guide, wanted).sum()
    total.backward()
    return run


def plain_autograd(potential: Any, pair: tuple[Atoms, Atoms], steps: int, method: Any) -> None:
    """What anyone would write: one forward pass that keeps all graphs, one backward pass."""
    relaxation = Relaxation(potential, method, [pair[0]])
    state = relaxation.start()
    for _ in range(steps):
        graph, _ = relaxation.graph(state)
        state = relaxation.move(state, relaxation.evaluate(state, graph, create_graph=True).forces)
    wanted = Structures.from_atoms([pair[1]], device=potential.device)
    positions, cell = relaxation.coordinates.structure(state.coordinates)
    end = Structures(positions, cell, wanted.pbc, wanted.batch, wanted.masses)
    potential.zero_grad()
    StructureLoss()(end, wanted).sum().backward()


class Peak:
    """Peak memory in bytes since it was made, above what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
            torch.cuda.reset_peak_memory_stats(self._gpu)
            self._before = torch.cuda.memory_allocated(self._gpu)
            return
        forget = Path("/proc/self/clear_refs")
        if forget.exists():
            try:
                forget.write_text("5")  # Linux: the highest resident set so far is forgotten
            except OSError:
                print("the peak of loading cannot be forgotten; small peaks hide behind it", file=sys.stderr)
        self._before = _resident("VmRSS")

    def read(self) -> int:
        if self._gpu is not None:
            return torch.cuda.max_memory_allocated(self._gpu) - self._before
        return _resident("VmHWM") - self._before


def _resident(name: str) -> int:
    """Bytes of resident memory now (VmRSS) or at most (VmHWM); only the latter where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


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
    run = gradient(calculator.potential, pair, options, METHODS[task["method"]])
    found = [p.grad.double().flatten() for p in calculator.potential.parameters() if p.grad is not None]
    flat = torch.cat(found).cpu()  # waits for a GPU, too
    seconds = time.perf_counter() - start
    if not bool(flat.isfinite().all()):
        raise SystemExit("the gradient is not finite")
    if task.get("gradient_file"):
        np.save(task["gradient_file"], flat.numpy())
    print(json.dumps({"peak_mib": peak.read() / MIB, "seconds": seconds, "steps": run.steps[0]}))


def fresh(**task: Any) -> dict[str, Any]:
    """The task and its measures, from a new process."""
    command = [sys.executable, __file__, "--measure", json.dumps(task)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0:  # out of memory, most likely
        print(f"{task['kind']} at {task['steps']} steps ended with status {answer.returncode}", flush=True)
        return task | {"peak_mib": float("nan"), "seconds": float("nan")}
    return task | json.loads(answer.stdout.splitlines()[-1])


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
    potential, pair, ratios = calculator.potential, silicon(), {}

    def finished(work: Any) -> Any:
        def timed() -> None:
            work()
            if potential.device.type == "cuda":
                torch.cuda.synchronize()

        return timed

    for name, method in METHODS.items():
        adjoint, unrolled = (
            finished(
                lambda kind=kind, method=method: gradient(potential, pair, {"steps": 20, "gradient": kind}, method)
            )
            for kind in ("adjoint", "unrolled")
        )
        plain = finished(lambda method=method: plain_autograd(potential, pair, 20, method))
        repeats = {"repeats": arguments.repeats, "warmup": 1}
        ratios[f"{name}, unrolled"] = compare(f"  {name}, against unrolled", adjoint, unrolled, **repeats)
        # `unrolled` relaxes without graphs before, to find out what explodes; a loop of one's own need not.
        ratios[f"{name}, plain loop"] = compare(f"  {name}, against a plain loop", adjoint, plain, **repeats)
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
