"""One pass over structures as they were read: labels, trajectories, and what a report says about them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ase_finetune.data.databases import Origin
from ase_finetune.data.frame import Frame, Summary, read_frame, summarize
from ase_finetune.data.groups import TrajectoryGroups
from ase_finetune.data.labels import LABELS, KeyCensus, label_notes
from ase_finetune.data.streaming import StreamedFrames


@dataclass(frozen=True)
class Scan:
    """Frames, and what was found while reading them.

    Attributes
    ----------
    frames
        A tuple, or what reads them again when asked for.
    label_sources
        For each label found, the keys it came from.
    notes
        Remarks for the report.
    keys_seen
        All keys by place, for messages.
    """

    frames: Sequence[Frame]
    label_sources: dict[str, str]
    notes: list[str]
    keys_seen: str


def scan(origins: Sequence[Origin], keys: Mapping[str, str | None], name: str) -> Scan:
    """Read all structures once; a list becomes frames, of anything else only summaries are kept.

    Parameters
    ----------
    origins
        The structures.
    keys
        As of :func:`~ase_finetune.data.labels.find_labels`.
    name
        What messages call the set.

    Raises
    ------
    DataError
        If a structure or a label cannot be used, or a key occurs nowhere.
    """
    passing = _Pass(origins, keys, name)
    if isinstance(origins, list):
        read = list(passing)
        groups = passing.groups.names()
        frames: Sequence[Frame] = tuple(
            dataclasses.replace(frame, group=group) for frame, group in zip(read, groups, strict=True)
        )
    else:
        known: dict[Summary, Summary] = {}
        summaries = [known.setdefault(summary, summary) for summary in map(summarize, passing)]
        frames = StreamedFrames(origins, dict(keys), name, passing.groups.names(), summaries)
    passing.census.check_keys_exist(keys, name)
    sources = {label: ", ".join(found) for label, found in passing.counts.items() if found}
    return Scan(frames, sources, label_notes(passing.census, passing.counts), passing.census.describe())


class _Pass:
    """Frames one by one, and what is counted on the way."""

    def __init__(self, origins: Sequence[Origin], keys: Mapping[str, str | None], name: str) -> None:
        self._origins, self._keys, self._name = origins, keys, name
        self.census = KeyCensus()
        self.groups = TrajectoryGroups()
        self.counts: dict[str, Counter[str]] = {label: Counter() for label in LABELS}

    def __iter__(self) -> Iterator[Frame]:
        for origin in self._origins:
            self.census.add(origin.atoms)
            self.groups.add(origin.atoms, origin.source)
            frame, labels = read_frame(origin, self._keys, self._name)
            for label, key in labels.sources.items():
                self.counts[label][key] += 1
            yield frame
