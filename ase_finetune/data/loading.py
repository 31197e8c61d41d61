"""Batches of graphs, built ahead by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ase_finetune.data.lazy_graphs import LazyGraphs
from ase_finetune.errors import FinetuneError, InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.parallel import STOP_SIGNALS

# Of the buffer in which graphs travel, so that every tensor may start there.
_ALIGNMENT = 16


class GraphLoader:
    """Hands over batches of graphs in the order asked for, the same whatever the number of workers.

    Workers live as long as the loader, and so do the graphs they keep: one loader serves all epochs.

    Parameters
    ----------
    graphs
        Graphs, lazy ones or a list.
    num_workers
        Processes that read and build lazy graphs ahead of their use; 0 builds them when they are used.
        Graphs that are in memory already are handed over as they are.

    Raises
    ------
    InputError
        If the number of workers is negative.
    """

    def __init__(self, graphs: Sequence[AtomGraph], *, num_workers: int = 0) -> None:
        if num_workers < 0:
            raise InputError(f"num_workers must not be negative, got {num_workers}")
        self.graphs = graphs
        self.num_workers = num_workers if isinstance(graphs, LazyGraphs) else 0
        self._order = _Order()
        self._loader: DataLoader[_Parcel] | None = None

    def batches(self, order: Iterable[Sequence[int]]) -> Iterator[list[AtomGraph]]:
        """The graphs of each batch of positions. One such iteration at a time.

        With workers, ``order`` is read a few batches ahead.

        Raises
        ------
        DataError
            If a frame cannot be read or evaluated any more; the message names it.
        """
        if not self.num_workers:
            for batch in order:
                yield [self.graphs[index] for index in batch]
            return
        self._order.batches = order
        for parcel in self._start():
            yield parcel.open()

    def _start(self) -> Iterator[_Parcel]:
        if self._loader is None:
            self._loader = DataLoader(
                _Builder(self.graphs),
                batch_sampler=self._order,
                collate_fn=_same,
                worker_init_fn=_ignore_signals,
                num_workers=self.num_workers,
                multiprocessing_context=_context(),
                persistent_workers=True,
                # Its own, since a loader draws a seed for its workers: without it, of the global generator.
                generator=torch.Generator(),
            )
            # Workers take no notice of the signal by which multiprocessing ends them. They are asked to end: when this
            # loader goes (freed in a cycle, its parts could not do it any more), and before multiprocessing's own exit.
            weakref.finalize(self, _shut_down, self._loader)
            atexit.register(_close, weakref.ref(self))
        with warnings.catch_warnings():
            # Workers read files and build graphs: they take none of the locks that other threads may hold.
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            return iter(self._loader)

    def close(self) -> None:
        """End the workers."""
        loader, self._loader = self._loader, None
        if loader is not None:
            _shut_down(loader)


def _shut_down(loader: DataLoader[_Parcel]) -> None:
    iterator: Any = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def _close(reference: weakref.ref[GraphLoader]) -> None:
    loader = reference()
    if loader is not None:
        loader.close()


def _ignore_signals(_: int) -> None:
    """Clusters send signals to all processes of a job: the main one decides when to stop."""
    for name in set(STOP_SIGNALS) - {"SIGTERM"}:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, _linger)


def _linger(*_: object) -> None:
    """Live on for as long as clusters give a job that they ask to stop; no longer, should nobody ask us to end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(_LINGER)


#: Seconds.
_LINGER = 60


def _context() -> Any:
    # A forked worker starts in milliseconds, and does not run the user's script again, which a spawned one
    # does if the script has no `if __name__ == "__main__"`. Only on Linux is forking safe with threads about.
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class _Order:
    """Batches of positions, new ones for every epoch."""

    batches: Iterable[Sequence[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (list(batch) for batch in self.batches)


@dataclass(frozen=True)
class _Packed:
    """Graphs as one tensor: workers send each tensor through shared memory, with a file handle of its own."""

    buffer: Tensor
    layout: list[dict[str, tuple[int, torch.dtype, torch.Size]]]

    @classmethod
    def pack(cls, graphs: Sequence[AtomGraph]) -> _Packed:
        parts: list[Tensor] = []
        layout: list[dict[str, tuple[int, torch.dtype, torch.Size]]] = []
        start = 0
        for graph in graphs:
            layout.append({})
            for name, value in graph.tensors().items():
                raw = value.contiguous().view(-1).view(torch.uint8)
                layout[-1][name] = start, value.dtype, value.shape
                padding = -raw.numel() % _ALIGNMENT
                parts += [raw, raw.new_zeros(padding)]
                start += raw.numel() + padding
        # A process may have no share of a batch.
        return cls(torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8), layout)

    def unpack(self) -> list[AtomGraph]:
        """The graphs, as views of the buffer."""
        return [AtomGraph(**{name: self._view(*place) for name, place in graph.items()}) for graph in self.layout]

    def _view(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        raw = self.buffer[start : start + shape.numel() * dtype.itemsize]
        return raw.view(dtype).view(shape)


@dataclass(frozen=True)
class _Parcel:
    """What a worker sends: graphs, or an error, which the loader would wrap in a text of its own."""

    graphs: _Packed | None
    error: type[FinetuneError] = FinetuneError
    message: str = ""

    def open(self) -> list[AtomGraph]:
        """The graphs; or raise the error."""
        if self.graphs is None:
            # Made here: an error kept in a variable of its own traceback is a cycle, and workers of a loader
            # that is freed with a cycle do not hear of it and are waited for.
            raise self.error(self.message)
        return self.graphs.unpack()


class _Builder(Dataset[_Parcel]):
    """Builds a whole batch at once."""

    def __init__(self, graphs: Sequence[AtomGraph]) -> None:
        self._graphs = graphs

    def __getitems__(self, indices: Sequence[int]) -> _Parcel:
        try:
            return _Parcel(_Packed.pack([self._graphs[index] for index in indices]))
        except FinetuneError as error:
            return _Parcel(None, type(error), str(error))


def _same(parcel: Any) -> Any:
    return parcel
