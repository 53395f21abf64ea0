"""What scoring keeps of outputs and targets while it streams over a split: no more than the metric needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..core.errors import EvaluationError
from ..core.statistics import percentile_interval, resamples, wilson_interval
from ..workloads.metrics import TOP_K, is_torchmetric

if TYPE_CHECKING:
    from torchmetrics import Metric

Tree = Any
"""A tensor [n, ...], or a structure of such tensors."""

MOST_GROUPS = 100
"""Groups of consecutive samples that a metric's state is kept of, for its interval."""

FUNCTION_GROUPS = 20
"""Groups that a function of large outputs is evaluated on."""

MOST_BYTES = 64 * 2**20
"""Outputs that take more than so many bytes are not resampled for a function, which would take minutes."""

SLOW_SECONDS = 0.05
"""A metric that takes more seconds of the processor to compute is not computed of each resample."""

AGREE = 1e-4
"""The largest relative difference of a metric computed of merged states from the one computed in one go."""


@dataclass(frozen=True)
class Tallied:
    """A metric of one split.

    Attributes:
        value: over all samples.
        method: how its interval is found.
        hits: 1 where a sample is right, shape [n]; None of a metric that counts none.
        resampled: the metric of each bootstrap resample; empty where there are hits.
    """

    value: float
    method: str
    hits: np.ndarray | None = None
    resampled: np.ndarray = field(default_factory=lambda: np.empty(0))

    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        if self.hits is not None:
            return wilson_interval(int(self.hits.sum()), len(self.hits))
        return percentile_interval(self.value, self.resampled)


class Tally(Protocol):
    """Takes a split block by block."""

    def add(self, outputs: Tree, targets: Tree) -> None:
        """Take the outputs of the next samples."""
        ...

    def result(self) -> Tallied:
        """The metric of all that was taken."""
        ...


def counts_hits(metric: Any) -> bool:
    """Whether a workload's metric says of each sample alone whether it is right, so that parts of a split can be scored apart."""
    return isinstance(metric, str) and metric in TOP_K


def tally_of(metric: Any, samples: int) -> Tally:
    """What keeps what `metric`, a workload's, needs of so many samples."""
    if counts_hits(metric):
        return Hits(TOP_K[metric], samples)
    if isinstance(metric, str) or is_torchmetric(metric):
        return States(metric, samples)
    return Whole(metric)


class Column:
    """A number of each sample, in the order they come; in one piece, as many small ones would keep freed memory from being used again."""

    def __init__(self, samples: int) -> None:
        self._values, self._count = torch.empty(samples, dtype=torch.float64), 0

    def add(self, values: Tensor) -> None:
        """Take the numbers [n] of the next samples."""
        self._values[self._count : self._count + len(values)] = values
        self._count += len(values)

    @property
    def values(self) -> Tensor:
        """The numbers so far."""
        return self._values[: self._count]


class Hits:
    """Whether each sample's class is among the `best` highest logits."""

    def __init__(self, best: int, samples: int) -> None:
        self._best, self._hits = best, Column(samples)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        best = outputs.topk(self._best, dim=1).indices
        self._hits.add((best == targets.reshape(-1, 1)).any(dim=1))

    def result(self) -> Tallied:
        hits = self._hits.values.numpy()
        return Tallied(float(hits.mean()), "wilson", hits)


@dataclass(frozen=True)
class _Instances:
    """Two instances of a metric, one for the whole split and one for a part of it, and what reads outputs and targets for them."""

    whole: Metric
    part: Metric
    read: Callable[[Tree, Tree], tuple[Tree, Tree]]

    @classmethod
    def of(cls, metric: Any, outputs: Tree, targets: Tree) -> _Instances:
        """Instances of a workload's metric, for outputs and targets like these."""
        if isinstance(metric, str):
            from ..workloads.named_metrics import make  # only here: it imports torchmetrics

            made, read = make(metric, outputs, targets)
        else:
            made, read = metric.clone(), _unread
            made.reset()
        return cls(made, made.clone(), read)


class States:
    """A metric of torchmetrics: its value is that of one instance; the states of groups of samples give the interval.

    States are merged as torchmetrics merges those of several processes. Where that gives another value, because the metric is not made for
    it, or takes long, the groups' own values are resampled.
    """

    def __init__(self, metric: Any, samples: int) -> None:
        self._metric, self._size = metric, -(-samples // MOST_GROUPS)
        self._of: _Instances | None = None
        self._in_group, self._groups = 0, list[Mapping[str, Tensor | list[Tensor]]]()

    def add(self, outputs: Tree, targets: Tree) -> None:
        self._of = instances = self._of or _Instances.of(self._metric, outputs, targets)
        instances.whole.update(*instances.read(outputs, targets))
        start, count = 0, length(outputs)
        while start < count:
            stop = min(count, start + self._size - self._in_group)
            instances.part.update(*instances.read(rows(outputs, start, stop), rows(targets, start, stop)))
            self._in_group, start = self._in_group + stop - start, stop
            if self._in_group == self._size:
                self._close(instances.part)

    def result(self) -> Tallied:
        assert self._of is not None, "a split has samples"
        part = self._of.part
        if self._in_group:
            self._close(part)
        value, count = self._number(self._of.whole), len(self._groups)
        over = "samples" if self._size == 1 else f"{count} groups of {self._size} samples"
        started = time.thread_time()  # not the clock's, which other programs slow down
        if self._is_mergeable(part, value) and time.thread_time() - started < SLOW_SECONDS:
            resampled = _each_resample(lambda chosen: self._merged(part, chosen), count)
            return Tallied(value, f"bootstrap over {over}", resampled=resampled)
        own = np.array([self._at(part, state) for state in self._groups])
        return Tallied(value, f"bootstrap over the values of {over}", resampled=_centred(value, own))

    def _close(self, part: Metric) -> None:
        """End a group."""
        state = part.metric_state
        self._groups.append({name: list(v) if isinstance(v, list) else v.clone() for name, v in state.items()})
        part.reset()
        self._in_group = 0

    def _is_mergeable(self, part: Metric, value: float) -> bool:
        try:
            merged = self._merged(part, np.arange(len(self._groups)))
        except Exception:  # whatever a metric raises over states that it does not expect; its groups' values serve then
            return False
        return math.isclose(merged, value, rel_tol=AGREE, abs_tol=1e-12)

    def _merged(self, metric: Metric, chosen: np.ndarray) -> float:
        """The metric of the chosen groups."""
        reductions = metric._reductions.items()
        state = {name: _reduced([self._groups[i][name] for i in chosen], reduction) for name, reduction in reductions}
        return self._at(metric, state)

    def _at(self, metric: Metric, state: Mapping[str, Any]) -> float:
        """The metric in a state."""
        for name, value in state.items():
            setattr(metric, name, value)
        metric._update_count, metric._computed = 1, None
        return self._number(metric)

    def _number(self, metric: Metric) -> float:
        found = metric.compute()
        single = isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1)
        if not single and not isinstance(self._metric, str):
            raise EvaluationError(f"metric {type(metric).__name__} must compute one number, not {type(found).__name__}")
        return float(found.mean() if isinstance(found, Tensor) else found)


def _unread(outputs: Tree, targets: Tree) -> tuple[Tree, Tree]:
    return outputs, targets


class Whole:
    """A function of all outputs and targets, which are kept for it."""

    def __init__(self, function: Callable[[Tree, Tree], float]) -> None:
        self._function, self._parts = function, list[tuple[Tree, Tree]]()

    def add(self, outputs: Tree, targets: Tree) -> None:
        self._parts.append((outputs, targets))

    def result(self) -> Tallied:
        self._outputs, self._targets = (joined(parts) for parts in zip(*self._parts, strict=True))
        self._parts.clear()
        n, value = length(self._outputs), self._value(None)
        if size(self._outputs) <= MOST_BYTES:
            return Tallied(value, "bootstrap over samples", resampled=_each_resample(self._value, n))
        groups = np.array_split(np.arange(n), min(n, FUNCTION_GROUPS))
        own = np.array([self._value(group) for group in groups])
        return Tallied(
            value, f"bootstrap over the values of {len(groups)} groups of samples", resampled=_centred(value, own)
        )

    def _value(self, chosen: np.ndarray | None) -> float:
        outputs, targets = self._outputs, self._targets
        if chosen is not None:
            outputs, targets = (pytree.tree_map(lambda t: t[chosen], tree) for tree in (outputs, targets))
        score: Any = self._function(outputs, targets)
        try:
            return float(score)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"{type(score).__name__} {list(getattr(score, 'shape', ''))}".removesuffix(" []")
            raise EvaluationError(f"the workload's metric must return one number, not {kind}") from error


def rows(tree: Tree, start: int, stop: int) -> Tree:
    """The samples from `start` to `stop` of every tensor."""
    return pytree.tree_map(lambda tensor: tensor[start:stop], tree)


def joined(parts: Sequence[Tree]) -> Tree:
    """Structures of tensors put together along their samples."""
    if isinstance(parts[0], Tensor):  # the usual case; looking into structures takes longer than running a small model
        return torch.cat(list(parts))
    return pytree.tree_map(lambda *tensors: torch.cat(tensors), parts[0], *parts[1:])


def length(tree: Tree) -> int:
    """The number of samples."""
    return len(tree if isinstance(tree, Tensor) else pytree.tree_leaves(tree)[0])


def size(tree: Tree) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in pytree.tree_leaves(tree))


def _reduced(states: Sequence[Any], reduction: Any) -> Any:
    """One state of several processes, as torchmetrics makes it."""
    if isinstance(states[0], list):
        flat = [tensor for state in states for tensor in state]
        return [reduction(flat)] if callable(reduction) else flat
    stacked = torch.stack(list(states))
    return reduction(stacked) if callable(reduction) else stacked


def _each_resample(statistic: Callable[[np.ndarray], float], n: int) -> np.ndarray:
    return np.array([statistic(chosen) for chosen in resamples(n)])


def _centred(value: float, own: np.ndarray) -> np.ndarray:
    """Resampled means of groups' own values, moved to the value of all samples."""
    return value + np.array([own[chosen].mean() for chosen in resamples(len(own))]) - own.mean()
