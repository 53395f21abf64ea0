"""Checkpoints of a recovery: its trainings as they are, so that a process that takes it up goes on where another was ended.

Only trainings are saved. What stands between them in a pipeline (pruning, calibration, rounding) follows from their weights, and is done
again. Files hold tensors and plain values, read by `torch.load(weights_only=True)`: nothing in them is run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ..ranks import Ranks

MADE_BY = f"format 1, torch {torch.__version__}"
"""What reads a checkpoint that it has made itself: states of optimizers and schedules are of one version."""

SHARED = "teacher"
"""The name of the folder next to the recoveries' own that holds what they share: outputs of their teacher."""

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part of a training whose state makes it go on as before: a module, an optimizer, a schedule, an order of data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


class RandomNumbers:
    """The generators that training draws from: torch's own, on every device."""

    def state_dict(self) -> dict[str, Any]:
        """Where they are."""
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have them go on from there."""
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])


class Checkpoint:
    """The state of one training, in a file that is replaced whole.

    Args:
        every_s: seconds between two saves, which take a fraction of a second; what was trained since the last one is lost with its process.

    Attributes:
        is_new: whether it was saved since this was last set to False.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self._path, self._every_s = path, every_s
        self._saved, self.is_new = time.monotonic(), False

    @property
    def shared(self) -> Path:
        """A folder for what the recoveries of a study have in common."""
        return self._path.parent.parent / SHARED

    @property
    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self._every_s

    def save(self, parts: Mapping[str, Stateful], **place: Any) -> None:
        """Replace what was saved by the state that these parts are in, and the place in the training; of several ranks the first does."""
        if Ranks.here().rank:
            self._saved = time.monotonic()  # or it were due again after each step
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_suffix(".new")
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**place, "parts": states, "made_by": MADE_BY}, written)
        written.replace(self._path)
        self._saved, self.is_new = time.monotonic(), True

    def restore(self, parts: Mapping[str, Stateful]) -> Mapping[str, Any] | None:
        """Have those of the parts that were saved go on from there; returns the place, None where nothing was saved."""
        if (saved := self._load()) is None:
            return None
        for name, state in saved["parts"].items():
            parts[name].load_state_dict(state)
        return saved

    def _load(self) -> Mapping[str, Any] | None:
        """What was saved last; None where nothing was, or it cannot be read, which is logged."""
        try:
            saved = torch.load(self._path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # of a disk that failed, or not one of ours
            logger.warning("%s cannot be read, the training begins anew: %s", self._path, error)
            return None
        made_by = saved.get("made_by") if isinstance(saved, dict) else "something else"
        if made_by != MADE_BY:
            logger.warning("%s was made by %s, the training begins anew with %s", self._path, made_by, MADE_BY)
            return None
        return saved


class Place:
    """How far a training is, saved with its parts; it begins where it was saved.

    Args:
        checkpoint: None saves nothing.
        parts: by name, all that training changes.
        looks: steps after which it is saved in any case.

    Attributes:
        steps: of the optimizer that are done.
        is_over: whether the whole training is.
    """

    def __init__(self, checkpoint: Checkpoint | None, parts: Mapping[str, Stateful], looks: Collection[int]) -> None:
        self._checkpoint, self._parts, self._looks = checkpoint, parts, looks
        saved = checkpoint.restore(parts) if checkpoint is not None else None
        self.steps, self.is_over = (saved["steps"], saved["is_over"]) if saved is not None else (0, False)

    def step(self) -> bool:
        """Count a step that is done; returns whether it was saved."""
        self.steps += 1
        if self._checkpoint is None or not (self._checkpoint.is_due or self.steps in self._looks):
            return False
        self._checkpoint.save(self._parts, steps=self.steps, is_over=False)
        return True

    def finish(self, name: str) -> None:
        """Save that training is over, and the state of the one part that is its result."""
        self.is_over = True
        if self._checkpoint is not None:
            self._checkpoint.save({name: self._parts[name]}, steps=self.steps, is_over=True)


class Checkpoints:
    """The checkpoints of the trainings of one recovery, which come in the same order each time it is run.

    Args:
        folder: of this recovery alone.
        every_s: as in `Checkpoint`.
    """

    def __init__(self, folder: Path, every_s: float) -> None:
        self._folder, self._every_s = folder, every_s
        self._trainings: list[Checkpoint] = []

    def next(self) -> Checkpoint:
        """The checkpoint of the next training."""
        self._trainings.append(Checkpoint(self._folder / f"training-{len(self._trainings) + 1}.pt", self._every_s))
        return self._trainings[-1]

    def take_new(self) -> bool:
        """Whether anything was saved since this was last asked."""
        found = any(checkpoint.is_new for checkpoint in self._trainings)
        for checkpoint in self._trainings:
            checkpoint.is_new = False
        return found
