"""How often Python looks for garbage."""

from gc import set_threshold

OBJECTS_PER_COLLECTION = 10_000
"""Python's own 700 lets the import of torch look for garbage hundreds of times: a sixth of the seconds that a process takes to start."""


def collect_seldom() -> None:
    """Look for garbage once in `OBJECTS_PER_COLLECTION` objects that are there to stay, from now on, in this process."""
    set_threshold(OBJECTS_PER_COLLECTION)
