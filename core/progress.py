"""What a long computation is at, in words: it calls a function of its caller's before each of its parts."""

from __future__ import annotations

from collections.abc import Callable

Doing = Callable[[str], None]
"""Is called with what begins now, such as "proving that groups can be pruned"."""


def unsaid(_: str) -> None:
    """The `Doing` of a caller that shows nothing."""
