"""Graphs that are built when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ase_finetune.data.streaming import StreamedFrames
from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph

if TYPE_CHECKING:
    from ase_finetune.data.frames import FrameSet

#: Memory for graphs that were used last, per set and process.
CACHE_BYTES = 128 * 2**20
# What a graph takes besides the numbers in its 13 tensors; measured as resident memory.
_OVERHEAD = 10 * 2**10


class LazyGraphs(Sequence[AtomGraph]):
    """Labelled graphs of a streamed set: each is read, built and kept as long as there is room.

    There is no cache on disk. Reading a row and building its graph takes about 1 ms (48 atoms, 1200
    edges). A file per graph, nine times as large as the row, is read in 0.2 ms while the system has it in
    memory, which it has not where the data are large (``benchmarks/streaming_memory.py``). Either is little
    beside a training step, and worker processes do it meanwhile.

    Parameters
    ----------
    frames
        A streamed set.
    cutoff
        Radius of the potential in Å.
    cache_bytes
        Bound of the graphs that are kept; those used last are.
    """

    def __init__(self, frames: FrameSet, cutoff: float, cache_bytes: int = CACHE_BYTES) -> None:
        if not isinstance(frames.frames, StreamedFrames):
            raise InputError(f"LazyGraphs needs a streamed set, and {frames.name} is in memory")
        self._frames, self._streamed = frames, frames.frames
        self._cutoff, self._cache_bytes = cutoff, cache_bytes
        self._cache: OrderedDict[int, AtomGraph] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, index: int) -> AtomGraph: ...
    @overload
    def __getitem__(self, index: slice) -> LazyGraphs: ...
    def __getitem__(self, index: int | slice) -> AtomGraph | LazyGraphs:
        if isinstance(index, slice):
            return LazyGraphs(self._frames[index], self._cutoff, self._cache_bytes)
        position = range(len(self))[index]
        graph = self._cache.get(position)
        if graph is None:
            graph = self._frames.graph(position, self._cutoff)
            self._streamed.remember_edges(position, self._cutoff, graph.num_edges)
            self._keep(position, graph)
        else:
            self._cache.move_to_end(position)
        return graph

    def __iter__(self) -> Iterator[AtomGraph]:
        return (self[position] for position in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        # Other processes fill a cache of their own.
        return self.__dict__ | {"_cache": OrderedDict(), "_cached_bytes": 0}

    @property
    def edges(self) -> list[int]:
        """Number of edges of each graph; the first time, those not known yet take a pass over the frames."""
        for position in np.flatnonzero(self._streamed.edges(self._cutoff) < 0):
            self[int(position)]
        counts: list[int] = self._streamed.edges(self._cutoff).tolist()
        return counts

    def _keep(self, position: int, graph: AtomGraph) -> None:
        self._cache[position] = graph
        self._cached_bytes += graph.num_bytes + _OVERHEAD
        while self._cached_bytes > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.num_bytes + _OVERHEAD
