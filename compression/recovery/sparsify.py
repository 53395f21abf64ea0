"""Steps of a recovery pipeline that train towards the zeros that a policy asks for, before pruning removes them.

| step | what is driven to zero | source |
|---|---|---|
| lasso | channels as groups of weights, and single weights, by an L1 penalty on their norms | Wen et al. 2016, arXiv:1608.03665 |
| slimming | channels, by an L1 penalty on the scales of their batch-norms | Liu et al. 2017, arXiv:1708.06519 |
| admm | what lies outside the nearest weights that are as sparse as the policy asks | Zhang et al. 2018, arXiv:1804.03294 |

All act on the weights after each step of the optimizer (Parikh & Boyd 2014, "Proximal Algorithms"), so that weights reach zero and the
strength means the same to every optimizer; it follows the learning rate. A penalty of 1 takes the weights to the policy's sparsity by the
end of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...spaces.policies.policy import Policy
from ..pruning.parts import Part, parts_of, scales_of

UPDATES = 10
"""How many times ADMM projects the weights and corrects its multipliers in a step of the pipeline."""

LEFT = 0.01
"""The share of their distance from fixed sparse weights that ADMM would leave weights which nothing else moves, at a penalty of 1."""


class AfterStep(Protocol):
    """Changes weights after each step of an optimizer; its state is what it remembers from one step to the next."""

    def __call__(self, share: float) -> None:
        """Act after a step.

        Args:
            share: that step's share of the sum of all learning rates.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def sparsifier(step: str, model: nn.Module, example_input: Batch, policy: Policy, kept: Mapping[str, int]) -> AfterStep:
    """What `step` of the table above does to `model` in training; nothing where `policy` removes nothing.

    Args:
        kept: channel group -> how many of its channels are left, for those that lose any.
    """
    if step == "slimming":
        return Lasso(scales_of(model, example_input, kept), policy.recovery.penalty)
    parts = parts_of(model, example_input, policy, kept)
    return (Lasso if step == "lasso" else Admm)(parts, policy.recovery.penalty)


class Lasso:
    """Takes the same amount at each step from the norms that the policy would remove now, the smallest, down to zero.

    That is the proximal step of the trimmed lasso (Bertsimas, Copenhaver & Mazumder 2017, arXiv:1708.04527), which spares what is
    kept: a penalty on all norms, as in the papers above, shrinks what is kept too, which short training does not make up for. At a
    penalty of 1 the amount is such that all of them reach zero by the end of the step, in steps of equal size where nothing resists.
    """

    def __init__(self, parts: Sequence[Part], penalty: float) -> None:
        self._parts, self._penalty, self._left = parts, penalty, 1.0

    @torch.no_grad()
    def __call__(self, share: float) -> None:
        strength = min(1.0, self._penalty * share / max(self._left, share))
        self._left -= share
        for part in self._parts:
            norms = part.norms(_itself)
            kept = part.kept(norms)
            amount = strength * torch.where(kept > 0, 0.0, norms).max()
            part.scale(_itself, kept + (1 - kept) * (1 - amount / norms.clamp_min(1e-12)).clamp_min(0))

    def state_dict(self) -> dict[str, Any]:
        """How much of the step is left."""
        return {"left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stood."""
        self._left = state["left"]


class Admm:
    """Pulls the weights W towards Z - U, where Z is W + U made as sparse as the policy asks and U adds up what W lacked of Z."""

    @torch.no_grad()
    def __init__(self, parts: Sequence[Part], penalty: float) -> None:
        self._parts, self._rate, self._done = parts, -penalty * math.log(LEFT), 0.0
        weights = {id(weight): weight for part in parts for weight in part.parameters}
        self._weights = list(weights.values())
        self._multipliers = {key: torch.zeros_like(weight) for key, weight in weights.items()}
        self._sparse = self._projected()

    @torch.no_grad()
    def __call__(self, share: float) -> None:
        pull = -math.expm1(-self._rate * share)
        for weight in self._weights:
            weight.lerp_(self._sparse[id(weight)] - self._multipliers[id(weight)], pull)
        before, self._done = self._done, self._done + share
        if int(self._done * UPDATES) > int(before * UPDATES):
            self._sparse = self._projected()
            for weight in self._weights:
                self._multipliers[id(weight)] += weight - self._sparse[id(weight)]

    def state_dict(self) -> dict[str, Any]:
        """How much of the step is done, and by weight the multipliers and the sparse weights."""
        keys = [id(weight) for weight in self._weights]
        multipliers, sparse = [self._multipliers[key] for key in keys], [self._sparse[key] for key in keys]
        return {"done": self._done, "multipliers": multipliers, "sparse": sparse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stood."""
        self._done = state["done"]
        for weight, multiplier, sparse in zip(self._weights, state["multipliers"], state["sparse"], strict=True):
            self._multipliers[id(weight)] = multiplier.to(weight.device)
            self._sparse[id(weight)] = sparse.to(weight.device)

    def _projected(self) -> dict[int, Tensor]:
        """W + U, made as sparse as the policy asks: the nearest such weights of each part."""
        sums = {id(weight): weight + self._multipliers[id(weight)] for weight in self._weights}
        for part in self._parts:
            part.scale(lambda weight: sums[id(weight)], part.kept(part.norms(lambda weight: sums[id(weight)])))
        return sums


def _itself(weight: Tensor) -> Tensor:
    return weight
