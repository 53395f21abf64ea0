"""What an exception says, and where it was raised, in words for a model's owner."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def place_of(error: Exception) -> str:
    """File and line of the model's code that raised; where all of it is torch's, what was raised."""
    libraries = (Path(torch.__file__).parent, Path(__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in libraries)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else f"a layer after it ({first_line(error)})"
