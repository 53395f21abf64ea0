"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Remembers an interrupt of this process, for loops to look at.

    Python raises KeyboardInterrupt wherever the program happens to be; in a destructor or in a callback of a library
    written in C it is printed or dropped, and the program would go on. Outside the main thread, which alone gets
    signals, this does nothing.
    """

    def __enter__(self) -> Interrupts:
        self._received = False
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise the interrupt again, if there was one.

        Raises:
            KeyboardInterrupt: there was one.
        """
        if self._received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        raise KeyboardInterrupt
