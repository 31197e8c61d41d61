"""Where the Fisher information of SevenNet-0 lies: published loss on labelled MPtrj frames, and label-free.

python -m benchmarks.fisher_pattern [--frames 40] [--published fisher_sevenn.pt]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ase_finetune.continual import FisherInformation, empirical_fisher, gaussian_fisher, load_fisher
from ase_finetune.data import read_frames
from ase_finetune.potentials import load_potential

DATA = Path(__file__).parents[1] / "examples" / "data"


def show(name: str, fisher: FisherInformation) -> None:
    shares = list(fisher.shares().items())[:4]
    print(f"{name:34s} mean {fisher.mean:.2e}; " + ", ".join(f"{key} {share:.1%}" for key, share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--published", help="Fisher file published with reEWC, to compare with")
    arguments = parser.parse_args()
    potential, _ = load_potential("7net-0")
    frames = read_frames(DATA / "mptrj_replay.extxyz")
    graphs = frames.select(range(min(arguments.frames, len(frames)))).graphs(potential.cutoff)
    show(f"empirical, {len(graphs)} labelled frames", empirical_fisher(potential, graphs))
    show(f"label-free, {len(graphs)} structures", gaussian_fisher(potential, graphs, max_edges=1))
    if arguments.published:
        show("published", load_fisher(arguments.published))


if __name__ == "__main__":
    main()
