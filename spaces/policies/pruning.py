"""How a policy prunes: by which criterion, ranked within what, in how many steps, and what becomes of what goes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...core.errors import PolicyError
from ...core.validation import shortened

SCOPES = ("layer", "global")
REDUCTIONS = ("drop", "merge", "reconstruct", "lasso")
MULTIPLES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Pruning:
    """Settings of everything a policy prunes.

    Attributes:
        criterion: the name of an importance criterion; the lowest importance is pruned first. Compression knows the names, which
            installed packages add to: a policy whose package is missing can still be read and shown.
        scope: "layer" takes each layer's fraction of weights from that layer; "global" takes as many weights in all, those of
            lowest importance in the whole model.
        steps: 1 prunes at once; more prune gradually during recovery, along a cubic (Zhu & Gupta 2017, arXiv:1710.01878).
        reduction: "drop" removes channels; "merge" adds the weights that read a removed channel to those that read the most similar
            one kept; "reconstruct" to those of all that are kept, by least squares on the calibration data; "lasso" does so too, after the
            LASSO, not the criterion, has chosen the channels on that data (He et al. 2017, arXiv:1707.06168).
        multiple: the number of channels that a layer keeps is rounded to a multiple of this, of which it keeps at least one.

    Raises:
        PolicyError: a setting is unknown or out of range.
    """

    criterion: str = "l2"
    scope: str = "layer"
    steps: int = 1
    reduction: str = "drop"
    multiple: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.criterion, str) or not self.criterion:
            raise PolicyError(f"pruning criterion must be a name, not {shortened(repr(self.criterion))}")
        for name, known in (("scope", SCOPES), ("reduction", REDUCTIONS), ("multiple", MULTIPLES)):
            if getattr(self, name) not in known or isinstance(getattr(self, name), (bool, float)):
                raise PolicyError(
                    f"pruning {name} must be one of {', '.join(map(str, known))}, not {shortened(repr(getattr(self, name)))}"
                )
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise PolicyError(f"pruning steps must be a whole number >= 1, not {shortened(repr(self.steps))}")

    def reduced_to(self, *, anything: bool, channels: bool, weights: bool, trained: bool) -> Pruning:
        """These settings with those neutral that decide nothing, as only channels or only weights go, or nothing is trained."""
        default = Pruning()
        return Pruning(
            self.criterion if anything else default.criterion,
            self.scope if weights else default.scope,
            self.steps if anything and trained else default.steps,
            self.reduction if channels else default.reduction,
            self.multiple if channels else default.multiple,
        )

    def changes(self) -> dict[str, Any]:
        """The settings that differ from the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
