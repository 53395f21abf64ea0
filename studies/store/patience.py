"""Waiting for a database that does not answer now: its server restarts, or another process has locked its file."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from ...core.errors import StoreAwayError, StoreError
from ...core.interrupts import is_interrupt_held

P = ParamSpec("P")
T = TypeVar("T")

LIMIT_S = 300.0
"""Seconds that a search waits for its database."""

CONTINUES = "once it answers, the same command continues"

PAUSE_S = 1.0
"""Seconds between two tries."""


class Patience:
    """How calls of a store wait for its database: not at all until `begin`, nor after one has waited in vain.

    A call is one transaction. Nothing is there of one that was cut off, so that it is made again as a whole. Where a server stops
    between the end of one and its answer, that one is made twice, which may be refused and then ends the search.
    """

    def __init__(self) -> None:
        self._say: Callable[[str], None] | None = None
        self._limit_s = LIMIT_S
        self._gave_up: str | None = None  # what is said of every call after one that waited in vain

    def begin(self, say: Callable[[str], None], limit_s: float = LIMIT_S) -> None:
        """Have calls wait from now on, for at most so many seconds each.

        Args:
            say: is called with a line when a call begins to wait, and when it has come through; by any thread.
        """
        self._say, self._limit_s, self._gave_up = say, limit_s, None

    def outlast(self, call: Callable[[], T]) -> T:
        """What `call` returns, as soon as the database answers.

        Raises:
            StoreError: it does not in time, or an interrupt is held back meanwhile.
            KeyboardInterrupt: the process is interrupted meanwhile.
        """
        try:
            return call()
        except StoreAwayError as error:
            if (
                self._gave_up is not None
            ):  # said by each: what is done at the end may replace the first one's error by its own
                raise StoreError(f"{error}; {self._gave_up}") from error
            if (say := self._say) is None:
                raise
            problem, began = error, time.monotonic()
        say(f"{problem}; this search tries again for up to {self._limit_s:g} s")
        try:
            while (waited := time.monotonic() - began) < self._limit_s and not is_interrupt_held():
                time.sleep(PAUSE_S)
                try:
                    found = call()
                except StoreAwayError as error:
                    problem = error
                else:
                    say(f"the database answers again, after {time.monotonic() - began:.0f} s")
                    return found
        except KeyboardInterrupt:  # what is written at the end is not waited for again
            self._gave_up = CONTINUES
            raise
        self._gave_up = f"waited {waited:.0f} s; {CONTINUES}"
        raise StoreError(f"{problem}; {self._gave_up}") from problem


class Patient(Protocol):
    """An object whose calls wait."""

    patience: Patience


def patient(call: Callable[Concatenate[Patient, P], T]) -> Callable[Concatenate[Patient, P], T]:
    """A method that waits as its object's `patience` says."""

    @wraps(call)
    def outlasting(self: Patient, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.patience.outlast(lambda: call(self, *args, **kwargs))

    return outlasting


def patiently(kind: type[T]) -> type[T]:
    """Make every public method of a class wait, but those of its bases: a class decorator."""
    for name, value in list(vars(kind).items()):
        if callable(value) and not name.startswith("_"):
            setattr(kind, name, patient(value))
    return kind
