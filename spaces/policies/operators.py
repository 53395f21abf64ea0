"""Compact operators that may replace a dense convolution or linear layer.

| choice | what replaces the layer | source |
|---|---|---|
| dense | the layer itself | |
| separable | a depthwise convolution followed by a 1x1 convolution | Howard et al. 2017, arXiv:1704.04861 |
| groups=G | a convolution in G groups, each reading its own channels | Xie et al. 2017, arXiv:1611.05431 |
| rank=F | two layers with fraction F of the full rank between them, nearest to the weights | Jaderberg et al. 2014, arXiv:1405.3866 |
| pca=F | the same, nearest to what the layer makes of the calibration data | Zhang et al. 2015, arXiv:1505.06798 |
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DENSE = "dense"
_FORM = re.compile(r"separable|groups=(?P<groups>[1-9]\d*)|(?P<kind>rank|pca)=(?P<rank>0\.\d+)")


@dataclass(frozen=True)
class Operator:
    """A compact operator, read from its text.

    Attributes:
        kind: what replaces the layer.
        amount: groups of "groups", fraction of the full rank of "rank" and "pca"; 0 for the others.
    """

    kind: Literal["dense", "separable", "groups", "rank", "pca"]
    amount: float = 0.0

    @classmethod
    def parse(cls, text: object) -> Operator:
        """The operator a text names.

        Raises:
            ValueError: another form, one group, or a rank of 0.
        """
        if text == DENSE:
            return cls("dense")
        form = _FORM.fullmatch(text) if isinstance(text, str) else None
        if form is None or form["groups"] == "1" or (form["rank"] and float(form["rank"]) == 0):
            raise ValueError(
                f"{text!r} is not dense, separable, groups=G with G > 1, or rank=F or pca=F with 0 < F < 1"
            )
        if form["groups"]:
            return cls("groups", int(form["groups"]))
        if form["rank"]:
            return cls("rank" if form["kind"] == "rank" else "pca", float(form["rank"]))
        return cls("separable")

    def weights(self, shape: Sequence[int]) -> int:
        """Weights of what replaces a layer whose weight has this `shape`, [out, in, kernel ...], biases aside."""
        outputs, inputs, kernel = shape[0], shape[1], math.prod(shape[2:])
        if self.kind == "groups":
            return math.prod(shape) // int(self.amount)
        if self.kind == "separable":
            return inputs * (kernel + outputs)
        if self.kind == "dense":
            return math.prod(shape)
        return rank_of(shape, self.amount) * (inputs * kernel + outputs)

    def why_not(self, shape: Sequence[int], groups: int) -> str | None:
        """Why it cannot replace a layer, or None where it can.

        Args:
            shape: of the layer's weight, [out, in / groups, kernel ...].
            groups: of the layer itself.
        """
        if self.kind == "dense":
            return None
        if groups > 1:
            return "the layer has groups already"
        if self.kind in ("rank", "pca"):
            return None
        if len(shape) < 3:
            return "the layer is not a convolution"
        if self.kind == "separable":
            return None if any(size > 1 for size in shape[2:]) else "its kernel is 1x1 already"
        if shape[0] % int(self.amount) or shape[1] % int(self.amount):
            return f"{shape[1]} and {shape[0]} channels are not both multiples of {int(self.amount)}"
        return None


def rank_of(shape: Sequence[int], fraction: float) -> int:
    """Channels between two layers of `fraction` of the full rank of a weight of this shape, [out, in, kernel ...]."""
    return max(1, round(fraction * min(shape[0], math.prod(shape[1:]))))
