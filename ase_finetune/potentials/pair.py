"""A Morse pair potential: small, smooth and differentiable, for tests and teaching."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ase_finetune.errors import InputError
from ase_finetune.files import write_text
from ase_finetune.graphs import AtomGraph, Edges
from ase_finetune.potentials.base import Potential


class MorsePotential(Potential):
    """Morse pairs with one well per element and a smooth cutoff.

    E_i = s_i + 1/2 sum_j D_ij [(1 - exp(-a_ij (r_ij - r0_ij)))^2 - 1] c(r_ij), with the geometric
    mean of the depths D and the arithmetic means of a and r0 of the two elements, and
    c(r) = 1 - 10 x^3 + 15 x^4 - 6 x^5, x = r/cutoff, which is twice differentiable at the cutoff.

    Parameters
    ----------
    numbers
        Atomic numbers, one well each.
    depth, width, distance, shift
        D (eV), a (1/Å), r0 (Å) and s (eV) per element, or one number for all.
    cutoff
        Å.

    References
    ----------
    P. M. Morse, Phys. Rev. 34, 57 (1929).
    """

    backend = "morse"
    native: nn.ParameterDict

    def __init__(
        self,
        numbers: Sequence[int] = (14,),
        depth: float | Sequence[float] = 1.0,
        width: float | Sequence[float] = 1.5,
        distance: float | Sequence[float] = 2.4,
        shift: float | Sequence[float] = 0.0,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__()
        if not 0 < cutoff < float("inf"):
            raise InputError(f"cutoff must be positive and finite, got {cutoff}")
        self.numbers = tuple(sorted(int(z) for z in numbers))
        if (
            not self.numbers
            or len(set(self.numbers)) < len(self.numbers)
            or not 1 <= min(numbers) <= max(numbers) < 119
        ):
            raise InputError(f"numbers must be different atomic numbers, got {list(numbers)}")
        self.cutoff = float(cutoff)
        given = {"depth": depth, "width": width, "distance": distance, "shift": shift}
        self.native = nn.ParameterDict(
            {name: nn.Parameter(_per_element(name, value, len(self.numbers))) for name, value in given.items()}
        )
        index = torch.full((120,), -1)
        index[list(self.numbers)] = torch.arange(len(self.numbers))
        self.register_buffer("_index", index, persistent=False)
        self._index: Tensor

    def atomic_energies(self, graph: AtomGraph, edges: Edges) -> Tensor:
        i, j = self._index[graph.numbers][edges.index]
        parameters = self.native
        depth = (parameters["depth"][i] * parameters["depth"][j]).sqrt()
        width = 0.5 * (parameters["width"][i] + parameters["width"][j])
        distance = 0.5 * (parameters["distance"][i] + parameters["distance"][j])
        r = torch.linalg.vector_norm(edges.vectors, dim=1)
        x = r / self.cutoff
        smooth = 1 - x**3 * (10 - 15 * x + 6 * x**2)
        pairs = depth * ((1 - torch.exp(-width * (r - distance))) ** 2 - 1) * smooth
        own: Tensor = parameters["shift"][self._index[graph.numbers]]
        return own.index_add(0, edges.index[0], 0.5 * edges.mask(pairs))

    def architecture(self) -> dict[str, Any]:
        return {"numbers": list(self.numbers), "cutoff": self.cutoff}

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any], head: str | None = None) -> MorsePotential:
        if head is not None:
            raise InputError(f"a Morse potential has no heads, got head={head!r}")
        return cls(architecture["numbers"], cutoff=architecture["cutoff"])

    @torch.no_grad()
    def shift_energies(self, offsets: dict[int, float]) -> None:
        for number, offset in offsets.items():
            self.native["shift"][self._index[number]] += offset

    def save_native(self, path: Path) -> None:
        """Write all parameters as JSON to ``path`` (this potential has no other tool to be read by)."""
        values = {name: parameter.tolist() for name, parameter in self.native.items()}
        write_text(path, json.dumps(self.architecture() | values, indent=1))


def _per_element(name: str, value: float | Sequence[float], count: int) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float32)
    if values.ndim and len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} elements")
    return values.expand(count).clone()
