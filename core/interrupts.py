"""Reliable Ctrl-C, SIGTERM and SIGHUP: they do not get lost, and never interrupt a write."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a process to end: an operator's, and that of a terminal that was closed."""

_watching: list[Interrupts] = []
"""The active `Interrupts` of this process, innermost last."""

_held: list[list[int]] = []
"""The signals that each active `uninterrupted` block has held back so far, innermost last."""


class Interrupts:
    """Remembers an interrupt of this process, for loops to look at.

    Python raises KeyboardInterrupt wherever the program happens to be; in a destructor or in a callback of a library
    written in C it is printed or dropped, and the program would go on. Outside the main thread, which alone gets
    signals, this does nothing.
    """

    def __enter__(self) -> Interrupts:
        self.received = False
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._receive)
            _watching.append(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            _watching.remove(self)
        if self.received and isinstance(error, Exception):  # a library made it of the interrupt, or of what that broke
            raise KeyboardInterrupt from error

    def check(self) -> None:
        """Raise the interrupt again, if there was one.

        Raises:
            KeyboardInterrupt: there was one.
        """
        if self.received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt


def raise_if_interrupted(error: BaseException) -> None:
    """Raise the Ctrl-C that caused `error`, if one did; to be called wherever any exception is turned into another.

    Libraries and users' code catch KeyboardInterrupt and raise something else. A KeyboardInterrupt that such code raised
    itself, without a signal, is an exception like any other.

    Raises:
        KeyboardInterrupt: there is one in the chain of the exception, and this process received a signal.
    """
    if _may_be_interrupted() and any(isinstance(each, KeyboardInterrupt) for each in _chain(error)):
        raise KeyboardInterrupt from error


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to every process of a command, to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def ending_interrupts() -> Iterator[None]:
    """Have what asks a process to end do what Ctrl-C does; also a decorator. Outside the main thread this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in ENDING}
    take_ending()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def take_ending() -> None:
    """Have the signals of `ENDING` do what Ctrl-C does, from now on: libraries such as Ray install handlers of their own.

    One that is ignored stays so, as the end of the terminal is by `nohup`.
    """
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold an interrupt back until the block has ended; also a decorator. A second one goes through at once.

    For what must be done whole. A KeyboardInterrupt inside a statement of SQLite leaves its transaction open for as long
    as the traceback is kept, and the next writer finds the database locked. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    _held.append(held)

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        _held.pop()  # the innermost is this one: an equal one would be removed by its value
        signal.signal(signal.SIGINT, previous)
        if held:
            signal.raise_signal(held[0])


def is_interrupt_held() -> bool:
    """Whether an interrupt waits for the end of an `uninterrupted` block: what only waits in there, waits no longer."""
    return any(_held)


def _terminate(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # shells start background jobs with SIGINT ignored
        raise KeyboardInterrupt
    handler(number, frame)


def _may_be_interrupted() -> bool:
    if _watching:
        return _watching[-1].received
    return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it was raised from or while handling."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def end_with(parent: int) -> None:
    """End this process, which releases the machine, when `parent` was killed and could not end it.

    It may have been killed before this process had started.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
