"""Signals that ask a run to stop: noted, and obeyed between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ase_finetune.parallel import STOP_SIGNALS


class StopSignals:
    """Notes the first signal that comes while it is entered; a second one has its usual effect.

    A signal that came too late to be obeyed has its usual effect when the block ends without an error.

    A signal that the program has given a handler of its own is left to it. Threads other than the main one cannot
    take signals: nothing is noted there.

    Attributes
    ----------
    received
        Number of the signal, or ``None``.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = getattr(signal, name, None)  # Windows has few of them
                if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None and self.received is not None:
            # It came too late for the run to obey, but the program is still to stop.
            signal.raise_signal(self.received)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self._restore()
        # A step may take long, and silence asks for a second Ctrl-C. Not by print, which may be at work just now.
        line = f"\n{signal.Signals(number).name}: stopping after this step, with a checkpoint\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
