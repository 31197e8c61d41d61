"""Trajectories that take the place of earlier ones, once there is something to take it."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from ase_finetune.errors import OutputError
from ase_finetune.files import is_there


class Replacing:
    """A file that is written beside its place and put there with its first complete frame, not before.

    Where nothing is in its place, it is written there. From the first frame on, it can be read there while it grows.

    Parameters
    ----------
    target
        Its place.

    Attributes
    ----------
    path
        Where to write; its ending is that of the place.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        beside = target.with_name(f".{uuid.uuid4().hex[:12]}.part{target.suffix}")
        self.path = beside if is_there(target) else target
        self._has_frame = self._is_placed = False

    def frame_is_written(self) -> None:
        """To be called after each frame."""
        if not self._has_frame and self.path != self.target and self.path.suffix != ".db":
            self._place_link()
        self._has_frame = True

    def _place_link(self) -> None:
        """A second name of the file that grows; a database has files beside it that go by its name."""
        link = self.path.with_name(f"{self.path.name}.link")
        # Some file systems have no links: there the end does it.
        with contextlib.suppress(OSError):
            os.link(self.path, link)
            link.replace(self.target)
            self._is_placed = True

    def __enter__(self) -> Replacing:
        return self

    def __exit__(self, *_: object) -> None:
        """Put the file in its place if it has a frame, whatever ended it; without one the earlier file stays."""
        if self.path == self.target:
            return
        try:
            if self._has_frame and not self._is_placed:
                self.path.replace(self.target)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.target} cannot be replaced: {error.strerror}; see {self.path}") from error
