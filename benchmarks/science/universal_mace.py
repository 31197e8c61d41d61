"""A small MACE trained on MPtrj frames, in the place of the pretrained ones, which cannot be shipped.

python -m benchmarks.science.universal_mace --data FOLDER [--quick] [--work FOLDER]

The trainer is ``finetune()`` itself, from random weights. The study "mace" trains it when it is not there yet.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import FrameSet, fit_reference
from ase_finetune.graphs.neighbors import neighbor_list
from ase_finetune.potentials.formats import CONFIG_FILE
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.mace import MACEPotential
from ase_finetune.potentials.storage import save_potential
from benchmarks.paired import machine
from benchmarks.science.judging import Judge, read_set
from benchmarks.science.plans import Plan

#: Elements of MPtrj: H to Pu without Po, At, Rn, Fr and Ra. The frames here do not hold all of them.
NUMBERS = tuple(z for z in range(1, 95) if not 84 <= z <= 88)

TRAIN, HELD_OUT = "mptrj_replay", "mptrj_retention"

#: How a plan names it.
NAME = "work:universal-mace"


@dataclass(frozen=True)
class Form:
    """Size of the model and length of its training.

    Attributes
    ----------
    channels, max_l
        Of the hidden features: so many copies of each irrep up to this degree.
    max_ell
        Degree of the spherical harmonics.
    correlation
        Body order less one.
    cutoff
        Å.
    radial
        Hidden layers of the radial network.
    epochs, batch_size, learning_rate
        As those of ``finetune()``.
    most_atoms
        Larger frames are not trained on; all are if ``None``.
    """

    channels: int
    max_l: int
    max_ell: int
    correlation: int
    cutoff: float
    radial: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    most_atoms: int | None = None


#: The quick one takes three minutes on a CPU core and knows little but its frames; the full one is meant for a GPU.
FORMS = {
    "quick": Form(32, 0, 2, 2, 4.5, (32, 32), epochs=50, batch_size=4, learning_rate=1e-2, most_atoms=24),
    "full": Form(128, 1, 3, 3, 5.0, (64, 64, 64), epochs=150, batch_size=8, learning_rate=3e-3),
}


def with_trained_model(plan: Plan, data: Path, work: Path) -> Plan:
    """The plan with the folder of the model in place of :data:`NAME`; one that names another model is left as it is."""
    return replace(plan, model=str(universal_mace(data, work, plan.form))) if plan.model == NAME else plan


def universal_mace(data: Path, work: Path, form: str) -> Path:
    """Folder of the trained model, which ``FinetunedCalculator`` loads; it is trained unless it is there.

    Parameters
    ----------
    data
        Folder of the research data.
    work
        Folder of checkpoints, in which the folder is made. A training that was interrupted goes on.
    form
        Of :data:`FORMS`.
    """
    target = work / f"universal-mace-{form}"
    if not (target / CONFIG_FILE).exists():
        print(f"{target}: training a MACE on {TRAIN}", flush=True)
        train(FORMS[form], read_set(data, TRAIN), target, output=work / f"{target.name}-run")
    return target


def train(form: Form, frames: FrameSet, target: Path, output: Path | None = None) -> FinetunedCalculator:
    """Train from random weights and save the result; the last epoch is kept.

    Parameters
    ----------
    form
        Size and length.
    frames
        With energies, forces and stress. The energies of the elements are fitted to all of them, whatever their size.
    target
        Folder of the result.
    output
        Folder of the run, from which it goes on if it was interrupted.
    """
    start = time.process_time()
    small = [k for k, frame in enumerate(frames) if form.most_atoms is None or len(frame.atoms) <= form.most_atoms]
    calculator = finetune(
        MACEPotential(untrained(form, frames)),
        frames.select(small),
        None,
        method="naive",
        replay=None,
        output=output,
        resume=output is not None,
        report=False,
        reference="none",  # the model's own energies are fitted to these frames
        epochs=form.epochs,
        batch_size=form.batch_size,
        learning_rate=form.learning_rate,
        loss={"huber_delta": 0.2, "forces_weight": 10.0, "stress_weight": 0.02},
        warmup=0.02,
    )
    about = {"form": asdict(form), "cpu_seconds": time.process_time() - start, "history": calculator.history}
    save_potential(calculator.potential, target, metadata=calculator.metadata | about)
    return calculator


def untrained(form: Form, frames: FrameSet, seed: int = 0) -> torch.nn.Module:
    """A native MACE with random weights, for energies and forces of the size of those of the frames."""
    modules = import_backend("mace.modules", "'ase_finetune[mace]'")
    o3 = import_backend("e3nn.o3", "'ase_finetune[mace]'")
    hidden = " + ".join(f"{form.channels}x{degree}{'eo'[degree % 2]}" for degree in range(form.max_l + 1))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e3nn's use of torch.jit
        torch.manual_seed(seed)
        native: torch.nn.Module = modules.ScaleShiftMACE(
            r_max=form.cutoff,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=form.max_ell,
            # As in the newer public models; on 60 frames they learned faster than those without a density.
            interaction_cls=modules.RealAgnosticDensityResidualInteractionBlock,
            interaction_cls_first=modules.RealAgnosticDensityInteractionBlock,
            num_interactions=2,
            num_elements=len(NUMBERS),
            hidden_irreps=o3.Irreps(hidden),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=atomic_energies(frames),
            avg_num_neighbors=mean_neighbours(frames, form.cutoff),
            atomic_numbers=list(NUMBERS),
            correlation=form.correlation,
            gate=torch.nn.functional.silu,
            radial_MLP=list(form.radial),
            heads=["Default"],
            # A relaxation on a potential of few frames needs something that keeps the atoms apart.
            pair_repulsion=True,
            distance_transform="Agnesi",
            atomic_inter_scale=rms_force(frames),
            atomic_inter_shift=0.0,
        )
    return native.float()


def atomic_energies(frames: FrameSet) -> Any:
    """(elements,) energy of each of :data:`NUMBERS` in eV, by least squares.

    Where the frames say nothing, as for elements they do not hold, it is the mean energy of an atom.
    """
    known = [frame for frame in frames if frame.energy is not None]
    middle = sum(frame.energy or 0.0 for frame in known) / sum(len(frame.atoms) for frame in known)
    offsets = fit_reference(frames, [middle * len(frame.atoms) for frame in frames]).offsets
    return np.array([middle + offsets.get(number, 0.0) for number in NUMBERS])


def mean_neighbours(frames: FrameSet, cutoff: float) -> float:
    """Neighbours of an atom within the cutoff (Å), on average."""
    edges = sum(neighbor_list(frame.atoms, cutoff)[0].shape[1] for frame in frames)
    return float(edges / sum(len(frame.atoms) for frame in frames))


def rms_force(frames: FrameSet) -> float:
    """Root of the mean square of all force components, eV/Å."""
    forces = np.concatenate([frame.forces for frame in frames if frame.forces is not None])
    return float(np.sqrt(np.mean(np.square(forces))))


def main(argv: Sequence[str] | None = None) -> None:
    """Train it, and tell its errors on frames that it has not seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small one, for a CPU")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    parser.add_argument("--work", type=Path, default=Path("runs/science"), help="folder of checkpoints")
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        parser.error("needs the research data: --data FOLDER or ASE_FINETUNE_DATA")
    print(machine())
    folder = universal_mace(Path(arguments.data), arguments.work, "quick" if arguments.quick else "full")
    calculator = FinetunedCalculator(folder)
    parameters = sum(parameter.numel() for _, parameter in calculator.potential.native_parameters())
    print(f"{folder}: {parameters} parameters, {calculator.metadata['cpu_seconds'] / 60:.1f} minutes of processor time")
    judge = Judge(Path(arguments.data), {"mptrj": None})
    for measure, value in judge(calculator.potential)["mptrj"].items():
        print(f"  {HELD_OUT}: {measure} {value:.4g}")


if __name__ == "__main__":
    main()
