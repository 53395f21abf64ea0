"""The importance of a channel, a head or a single weight: the criteria that pruning ranks them by.

A further criterion is a class here and its name in `CRITERIA`, or an entry point in the group `slimfront.criteria`.

| name | importance | source |
|---|---|---|
| l2 | sum of squares over all layers of the group; of a recurrent layer, over all gates | Li et al. 2017, arXiv:1608.08710; groups: Fang et al. 2023, arXiv:2301.12900; units: Wen et al. 2018, arXiv:1709.05027 |
| l1 | sum of magnitudes | Li et al. 2017, arXiv:1608.08710 |
| taylor | weight x gradient: what the loss changes without it, to first order | Molchanov et al. 2019, arXiv:1906.10771 |
| bn_scale | batch-norm's scale; as l2 where a group has no batch-norm, and for single weights | Liu et al. 2017, arXiv:1708.06519 |
| random | uniform noise: the control that the others have to beat | |
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch_pruning as tp
from torch import Tensor
from torch_pruning.dependency import Group

from ...core.errors import CompressionError
from ...core.registry import Registry
from ...spaces.models.attention.heads import HeadWeights
from ...spaces.models.failures import first_line
from .unit_importance import Values, recurrent_scores

ImportanceClass = Callable[..., Callable[[Group], Tensor | None]]
"""A class of `torch_pruning.importance`, whose annotations leave out that `normalizer` may be None."""


@dataclass(frozen=True)
class Scoring:
    """What criteria may use in addition to the weights.

    Attributes:
        seed: of random scores.
        has_gradients: every parameter's `grad` holds the sum over calibration batches of the mean loss's gradient.
    """

    seed: int = 0
    has_gradients: bool = False

    def generator(self, name: str) -> torch.Generator:
        """A generator for one group or layer, whatever the order they are asked for in."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))


class Criterion(Protocol):
    """Ranks what may be removed; the lowest importance is pruned first.

    Attributes:
        needs_gradients: `Scoring.has_gradients` has to hold.
    """

    needs_gradients: bool

    def channels(self, group: Group, name: str, scoring: Scoring) -> Tensor:
        """Scores of a group's channels, shape [channels]."""
        ...

    def weights(self, weight: Tensor, name: str, scoring: Scoring) -> Tensor:
        """Scores of single weights, shape of `weight`."""
        ...

    def heads(self, attention: HeadWeights, name: str, scoring: Scoring) -> Tensor:
        """Scores of an attention's heads, shape [heads]."""
        ...


class _ByWeight:
    """A criterion that scores single weights, and by their sum the heads."""

    needs_gradients = False

    def weights(self, weight: Tensor, name: str, scoring: Scoring) -> Tensor:
        return weight.detach().abs()

    def heads(self, attention: HeadWeights, name: str, scoring: Scoring) -> Tensor:
        scores = torch.zeros(attention.num_heads, device=attention.slices[0].weight.device)
        for part in attention.slices:
            rows = self.weights(part.weight, name, scoring).index_select(part.dim, part.own).movedim(part.dim, 0)
            scores.index_add_(0, part.roots, rows.flatten(1).sum(1))
        return scores


@dataclass(frozen=True)
class Magnitude(_ByWeight):
    """Sum of |weight| to the power `p` over all layers of a group."""

    p: int = 2

    def channels(self, group: Group, name: str, scoring: Scoring) -> Tensor:
        values = partial(self.weights, name=name, scoring=scoring)
        return _scores(tp.importance.GroupMagnitudeImportance, group, name, values, p=self.p)

    def weights(self, weight: Tensor, name: str, scoring: Scoring) -> Tensor:
        return weight.detach().abs() ** self.p


class Taylor(_ByWeight):
    """|weight x gradient|, summed before the magnitude is taken over what belongs to one channel."""

    needs_gradients = True

    def channels(self, group: Group, name: str, scoring: Scoring) -> Tensor:
        _require_gradients(scoring)
        return _scores(tp.importance.GroupTaylorImportance, group, name, _times_gradient, multivariable=True)

    def weights(self, weight: Tensor, name: str, scoring: Scoring) -> Tensor:
        _require_gradients(scoring)
        if weight.grad is None:
            raise CompressionError(f"taylor: the loss does not depend on the weight of {name}")
        return _times_gradient(weight).abs()


class BatchNormScale(Magnitude):
    """|scale| of the batch-norm after a channel; as `Magnitude` where there is none."""

    def channels(self, group: Group, name: str, scoring: Scoring) -> Tensor:
        scales = _summed(tp.importance.BNScaleImportance, group)
        return super().channels(group, name, scoring) if scales is None else scales


class Random(_ByWeight):
    """Uniform numbers, the same for the same seed and name."""

    def channels(self, group: Group, name: str, scoring: Scoring) -> Tensor:
        return torch.rand(len(group[0].idxs), generator=scoring.generator(name))

    def weights(self, weight: Tensor, name: str, scoring: Scoring) -> Tensor:
        return torch.rand(weight.shape, generator=scoring.generator(name)).to(weight.device)


def _times_gradient(weight: Tensor) -> Tensor:
    return weight.detach() * (torch.zeros_like(weight) if weight.grad is None else weight.grad)


def _scores(kind: ImportanceClass, group: Group, name: str, values: Values, **settings: object) -> Tensor:
    """Scores of a group: Torch-Pruning's, which knows no recurrent layers, and in addition what `values` are of those."""
    of_units, others = recurrent_scores(group, values), _summed(kind, group, **settings)
    found = [scores for scores in (of_units, others) if scores is not None]
    if not found:
        raise CompressionError(f"{name}: no layer of the group has weights to score")
    return sum(found[1:], found[0])


def _summed(kind: ImportanceClass, group: Group, **settings: object) -> Tensor | None:
    """Scores of an importance of Torch-Pruning by the root's channels, shape [channels]; None where it finds no layer that it reads.

    Torch-Pruning reduces to the channels of the first layer that it reads, which need not be the root's: a part of them where it
    makes one branch of a concatenation, several of each where what it makes is folded into images.

    Raises:
        CompressionError: it takes a layer's channels for others, as it may where a removed block stood between two layers.
    """
    channels = len(group[0].idxs)
    importance: Any = kind(normalizer=None, **settings)

    def reduce(scores: Sequence[Tensor], roots: Sequence[Sequence[int]]) -> Tensor:
        parts = zip(scores, roots, strict=True)
        return sum(
            (torch.zeros(channels).index_add_(0, torch.tensor(to), each.cpu().float()) for each, to in parts),
            torch.zeros(channels),
        )

    importance._reduce = reduce
    try:
        return importance(group)
    except IndexError as error:
        raise CompressionError(f"Torch-Pruning cannot score the channels of a group: {first_line(error)}") from error


CRITERIA: Registry[Criterion | type[Criterion]] = Registry(
    "criterion",
    "slimfront.criteria",
    CompressionError,
    {"l1": Magnitude(1), "l2": Magnitude(2), "taylor": Taylor(), "bn_scale": BatchNormScale(2), "random": Random()},
)
"""Name -> criterion, or the class of one that takes no arguments."""

register_criterion = CRITERIA.register
"""Have policies choose a criterion by a name."""


def criteria() -> list[str]:
    """Names of the criteria there are."""
    return list(CRITERIA)


def get_criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        CompressionError: no such criterion, or its package cannot be imported.
    """
    found = CRITERIA[name]
    return found() if isinstance(found, type) else found


def _require_gradients(scoring: Scoring) -> None:
    if not scoring.has_gradients:
        raise CompressionError("taylor needs gradients: give the workload whose loss they are of")
