"""Ctrl-C that cannot get lost, and comes between two writes, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold an interrupt back until the block has ended; also a decorator. A second one goes through at once.

    For what must be done whole. A KeyboardInterrupt inside a statement of SQLite leaves its transaction open for as long
    as the traceback is kept, and whoever writes next finds the database locked. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held:
            signal.raise_signal(signal.SIGINT)
