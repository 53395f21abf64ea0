"""What is said of workers that wait for room in the cluster, and when a search stops waiting."""

from __future__ import annotations

from collections.abc import Callable

from ...core.errors import SearchError
from .ray_slots import Slots

PATIENCE_SECONDS = 300
"""Seconds for which a cluster may have no node with room for a worker."""

HELD_SECONDS = 10
"""Seconds for which workers wait for what other Ray jobs hold, before that is said: Ray takes some to note that one has ended."""


class Shortages:
    """Since when, while there is work, workers wait for other Ray jobs, and since when no node has room for any.

    Args:
        remark: says to the user what workers wait for.
    """

    def __init__(self, remark: Callable[[str], None]) -> None:
        self._remark = remark
        self._has_told = False
        self.forget()

    def forget(self) -> None:
        """Begin anew: what happened while there was nothing to hand out is no shortage."""
        self._held_since: float | None = None
        self._no_room_since: float | None = None

    def look(self, slots: Slots, now: float) -> None:
        """See how things are at a time, in seconds of a clock that is never set.

        Raises:
            SearchError: no node has had room for a worker for `PATIENCE_SECONDS`.
        """
        self._held_since = _since(self._held_since, now, slots.waiting > 0)
        self._no_room_since = _since(self._no_room_since, now, not slots.usable)
        if self._no_room_since is not None and now - self._no_room_since > PATIENCE_SECONDS:
            raise SearchError(f"no node of the Ray cluster has had room for a worker for {PATIENCE_SECONDS} s")
        if self._no_room_since is not None and now - self._no_room_since > HELD_SECONDS:
            self._tell_once(f"{slots.too_small_text()}; the search waits {PATIENCE_SECONDS} s for one to join")
        if self._held_since is not None and now - self._held_since > HELD_SECONDS:
            self._tell_once(slots.waiting_text())

    def _tell_once(self, remark: str) -> None:
        """Say why workers wait, the first time they do."""
        if not self._has_told:
            self._has_told = True
            self._remark(remark)


def _since(before: float | None, now: float, holds: bool) -> float | None:
    """Since when something holds without a break; None where it does not."""
    return (now if before is None else before) if holds else None
