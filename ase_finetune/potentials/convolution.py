"""Equivariant convolution over neighbours without a message per edge: the hot loop of SevenNet and MACE.

Both form, for every edge, the tensor product of the sender's features with the spherical harmonics of the edge, weight
it by a radial network and sum what arrives at each atom. e3nn makes all messages and sums them afterwards; writing and
reading them, and the products that lead to them, is what takes the time. Here the edges that arrive at an atom are
put side by side in groups, and the product with the harmonics and the sum over a group are one matrix product of
the weighted features: what it makes is written once per group, not once per edge.

The coefficients are read off e3nn's own module, normalisation and rounding included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ase_finetune.graphs.edges import GROUP, by_receiver
from ase_finetune.potentials.arrangement import Arrangement


@dataclass(frozen=True)
class _Path:
    """One tensor-product path: its position among all paths, and where its results are."""

    position: int
    output: slice
    size: int


@dataclass(frozen=True)
class _Block:
    """Input features of one irrep, (multiplicity x size), and the paths that start from it."""

    input: slice
    multiplicity: int
    size: int
    paths: tuple[_Path, ...]


class Convolution:
    """The sum over neighbours of an e3nn tensor product with a weight per edge and channel.

    Parameters
    ----------
    product
        e3nn ``TensorProduct`` in mode "uvu" with one channel of harmonics; see :func:`find_convolution`.
    """

    def __init__(self, product: Any) -> None:
        self.inputs, self.outputs = int(product.irreps_in1.dim), int(product.irreps_out.dim)
        self._blocks = _blocks(product)
        self._channels = [int(product.irreps_in1[item.i_in1].mul) for item in product.instructions]
        self._coefficients = _read(product, self._blocks)

    def __call__(self, features: Tensor, harmonics: Tensor, weights: Tensor, arrangement: Arrangement) -> Tensor:
        """Sum what the neighbours of each atom send.

        Parameters
        ----------
        features : (n, inputs)
            Of the atoms, in e3nn's layout.
        harmonics : (s, h)
            Of the edge in each slot; 0 where it is empty.
        weights : (s, w)
            Of the edge in each slot, in e3nn's order.
        arrangement
            Of the edges in slots.

        Returns
        -------
        (atoms, outputs) in e3nn's layout, differentiable twice in all three.
        """
        results: list[tuple[int, Tensor]] = []
        # Split, not sliced path by path: the gradient is then put together once.
        parts = weights.split(self._channels, dim=1)
        for block, coefficients in zip(self._blocks, self._coefficients, strict=True):
            chosen = [parts[path.position] for path in block.paths]
            results += self._block(block, coefficients, features, harmonics, chosen, arrangement)
        return torch.cat([part for _, part in sorted(results, key=lambda item: item[0])], dim=1)

    @staticmethod
    def _block(
        block: _Block,
        coefficients: Tensor,
        features: Tensor,
        harmonics: Tensor,
        weights: list[Tensor],
        edges: Arrangement,
    ) -> list[tuple[int, Tensor]]:
        groups = len(edges.receivers)
        channels, size = block.multiplicity, block.size
        rows = sum(path.size for path in block.paths)
        # Channels last: they are the long dimension of everything that follows.
        sent = features[:, block.input].reshape(len(features), channels, size).transpose(1, 2).contiguous()
        sent = sent.index_select(0, edges.senders)
        turns = (harmonics @ coefficients).view(groups, GROUP, rows, size)
        turns = turns.transpose(1, 2).reshape(groups, rows, GROUP * size)
        sums = []
        for weight, turn in zip(weights, turns.split([path.size for path in block.paths], dim=1), strict=True):
            weighted = (sent * weight[:, None]).view(groups, GROUP * size, channels)
            sums.append(torch.bmm(turn, weighted))
        received = features.new_zeros(edges.atoms, rows, channels).index_add(0, edges.receivers, torch.cat(sums, dim=1))
        parts = received.transpose(1, 2).split([path.size for path in block.paths], dim=2)
        return [
            (path.output.start, part.reshape(edges.atoms, -1)) for path, part in zip(block.paths, parts, strict=True)
        ]


class FusedConvolutions:
    """The convolutions of a model by name: all of them, or none if one is of a kind that is not known here.

    Parameters
    ----------
    products
        e3nn's tensor products, which belong to the model and stay unchanged.
    """

    def __init__(self, products: Mapping[str, nn.Module]) -> None:
        self._products = dict(products)
        # For each type and device that was met: what is recorded of them reads their coefficients where they are.
        self._made: dict[tuple[torch.dtype, torch.device], dict[str, Convolution]] = {}
        self._convolutions: dict[str, Convolution] = {}

    def usable(self) -> bool:
        """Whether all can be had, in the dtype and on the device the model has now; checked once for each."""
        if not self._products:
            return False
        buffer = next(next(iter(self._products.values())).buffers(), None)
        if buffer is None:  # not one of e3nn's
            return False
        kind = buffer.dtype, buffer.device
        if kind not in self._made:
            # Kept for evaluations that are differentiated, whatever this one is.
            with torch.inference_mode(False):
                found = {name: find_convolution(product) for name, product in self._products.items()}
            self._made[kind] = {name: item for name, item in found.items() if item is not None}
        self._convolutions = self._made[kind]
        return len(self._convolutions) == len(self._products)

    def __getstate__(self) -> dict[str, Any]:
        # Made again where it is loaded: that machine may not have the device these are on.
        return self.__dict__ | {"_convolutions": {}, "_made": {}}

    def __contains__(self, name: str) -> bool:
        return name in self._convolutions

    def __getitem__(self, name: str) -> Convolution:
        return self._convolutions[name]


def find_convolution(product: nn.Module) -> Convolution | None:
    """The convolution of an e3nn tensor product; ``None`` if it is of another kind, or the numbers are not the same."""
    if not _is_supported(product):
        return None
    convolution = Convolution(product)
    return convolution if _agrees(convolution, product) else None


def _is_supported(product: Any) -> bool:
    try:
        instructions, second = product.instructions, product.irreps_in2
        external = not (product.internal_weights or product.shared_weights)
    except AttributeError:
        return False
    outputs = [item.i_out for item in instructions]
    return (
        external
        and len(set(outputs)) == len(outputs) == len(product.irreps_out)
        and all(item.connection_mode == "uvu" and item.has_weight for item in instructions)
        and all(item.mul == 1 for item in second)
    )


def _blocks(product: Any) -> tuple[_Block, ...]:
    first, out = product.irreps_in1.slices(), product.irreps_out.slices()
    paths: dict[int, list[_Path]] = defaultdict(list)
    for position, item in enumerate(product.instructions):
        size = product.irreps_out[item.i_out].ir.dim
        paths[item.i_in1].append(_Path(position, out[item.i_out], size))
    return tuple(
        _Block(first[index], product.irreps_in1[index].mul, product.irreps_in1[index].ir.dim, tuple(found))
        for index, found in paths.items()
    )


@torch.no_grad()
def _read(product: Any, blocks: tuple[_Block, ...]) -> list[Tensor]:
    """Per block (h, rows x size): what one harmonic makes of one component, over all paths."""
    buffer = next(product.buffers())
    reference = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
    units = torch.eye(product.irreps_in2.dim, dtype=reference.dtype, device=reference.device)
    weights = reference.new_ones(len(units), product.weight_numel)
    coefficients = []
    for block in blocks:
        columns = []
        for component in range(block.size):
            features = reference.new_zeros(len(units), product.irreps_in1.dim)
            features[:, block.input.start + component] = 1.0
            made = product(features, units, weights)
            columns.append(torch.cat([made[:, path.output][:, : path.size] for path in block.paths], dim=1))
        coefficients.append(torch.stack(columns, dim=2).flatten(1).contiguous())
    return coefficients


@torch.no_grad()
def _agrees(convolution: Convolution, product: Any) -> bool:
    """Whether both give the same sums over a few random edges."""
    buffer = next(product.buffers())
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu").to(buffer)

    senders = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0], device=buffer.device)
    receivers = torch.tensor([1, 0, 2, 2, 2, 2, 2, 2], device=buffer.device)
    features = random(3, convolution.inputs)
    harmonics, weights = random(8, product.irreps_in2.dim), random(8, product.weight_numel)
    messages = product(features[senders], harmonics, weights)
    expected = features.new_zeros(3, convolution.outputs).index_add(0, receivers, messages)
    order, filled = by_receiver(receivers, 3)
    arrangement = Arrangement(senders[order], receivers[order[::GROUP]], 3)
    found = convolution(features, harmonics[order] * filled[:, None], weights[order], arrangement)
    tolerance = 100 * torch.finfo(features.dtype).eps
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
