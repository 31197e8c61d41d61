"""Writing that fails at its n-th call, in every way a disk has."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

from ase_finetune.errors import OutputError


class Failing:
    """Makes the n-th call that writes fail; counts the calls."""

    CALLS = ("open", "write", "fsync", "replace")
    #: Whether flushing a folder counts, which not every file system can, so that nobody is told if it fails.
    FOLDERS = False

    def __init__(self, monkeypatch, number: int, code: int) -> None:
        self.calls = 0
        self._number, self._code = number, code
        self._patch(monkeypatch)

    def _patch(self, monkeypatch) -> None:
        real_open, real_fsync, real_replace = Path.open, os.fsync, Path.replace

        def fake_open(path, mode="r", *args, **kwargs):
            file = real_open(path, mode, *args, **kwargs)
            if "r" in mode:
                return file
            try:
                self._count()
            except OSError:
                file.close()
                raise
            return Torn(file, self._count)

        def fake_fsync(descriptor):
            if self.FOLDERS or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self._count()
            real_fsync(descriptor)

        def fake_replace(path, target):
            self._count()
            return real_replace(path, target)

        monkeypatch.setattr(Path, "open", fake_open)
        monkeypatch.setattr(os, "fsync", fake_fsync)
        monkeypatch.setattr(Path, "replace", fake_replace)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._number:
            raise OSError(self._code, os.strerror(self._code))


class Killing(Failing):
    """Kills the process at the n-th call that writes."""

    FOLDERS = True

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._number:
            os.kill(os.getpid(), signal.SIGKILL)


class Torn:
    """A file of which half a write arrives before it fails."""

    def __init__(self, file, count) -> None:
        self._file, self._count = file, count

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self._file.close()

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        self._count()
        return self._file.write(data[len(data) // 2 :])

    def __getattr__(self, name):
        return getattr(self._file, name)


def fail_at_every_write(monkeypatch, code: int, action, check) -> int:
    """Let the first, second, ... call of ``action`` that writes fail; returns how many there are."""
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            failing = Failing(patch, number, code)
            try:
                action()
            except OutputError as error:
                told = str(error)
            else:
                assert failing.calls < number, f"call {number} failed and nobody was told"
                return number - 1
        assert os.strerror(code) in told
        check()
    raise AssertionError("the action never ends")


def no_parts(folder: Path) -> bool:
    return not list(folder.rglob("*.part"))


CODES = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO]
