"""When a recovery has stopped getting better."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """Ends training after `patience` epochs without a lower loss, and goes back to the best weights."""

    def __init__(self, patience: int) -> None:
        self.patience, self.waited, self.best = patience, 0, float("inf")
        self.state: dict[str, Tensor] | None = None

    def is_over(self, student: nn.Module, loss: float) -> bool:
        """Note the loss after another epoch; whether training ends there."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.state = copy.deepcopy(student.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience or not math.isfinite(loss)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of earlier epochs."""
        return {"waited": self.waited, "best": self.best, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stood."""
        self.waited, self.best, self.state = state["waited"], state["best"], state["state"]

    def restore(self, student: nn.Module) -> None:
        """Give a student the best weights."""
        if self.state is not None:
            student.load_state_dict(self.state)
