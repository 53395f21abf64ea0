"""Processes that train one model together, each on its share of every batch: data parallelism on the process group of `torch.distributed`.

All ranks come to the same weights, and to those of one process that trains on whole batches, to rounding. Gradients are averaged by torch's
DistributedDataParallel; statistics of batch-norm are those of the whole batch, on processors too, for which torch's SyncBatchNorm is
not made. What is not a mean over samples is taken over a rank's share: relations between samples, classes with weights of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .folding import BATCH_NORMS

FORWARDS = {kind.forward for kind in BATCH_NORMS}
"""What computes a batch-norm and nothing else."""


@dataclass(frozen=True)
class Ranks:
    """One process among those that train a model together; alone by default."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """This process's place in its process group."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    def share(self, samples: list[int], batch_size: int) -> list[int]:
        """Of samples in the order of batches, those that this rank reads; too few for another batch are left out.

        Args:
            batch_size: of all ranks together, each of which has an equal part.
        """
        if self.is_alone:
            return samples
        own, whole = batch_size // self.count, len(samples) // batch_size * batch_size
        starts = range(self.rank * own, whole, batch_size)
        return [sample for start in starts for sample in samples[start : start + own]]

    def agreed(self, value: float) -> float:
        """The first rank's value, so that no rank decides otherwise than the rest."""
        if self.is_alone:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def seed_step(self, seed: int, step: int) -> None:
        """Have each rank draw random numbers of its own, such as dropout's, that follow from the step: one that is taken up draws the same."""
        if not self.is_alone:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    def averaging(
        self, loss: Callable[..., Tensor], learners: Sequence[nn.Module], per_step: int
    ) -> Callable[..., Tensor]:
        """`loss` itself if there is but one rank, else such that its gradients are the mean of all ranks'; all begin with the first rank's weights.

        Args:
            per_step: batches of a step; of one, DistributedDataParallel learns from the first which parameters have gradients.
        """
        if self.is_alone:
            return loss
        whole, is_single = _Loss(loss, learners), per_step == 1
        return DistributedDataParallel(
            whole, forward_sync_buffers=False, static_graph=is_single, find_unused_parameters=not is_single
        )

    @contextmanager
    def whole_batches(self, models: Sequence[nn.Module]) -> Iterator[None]:
        """Have batch-norms of models in training mode normalise by statistics of the whole batch."""
        modules = [] if self.is_alone else [module for model in models for module in model.modules()]
        # A subclass with a forward of its own, as timm's with an activation, normalises by its share of the batch.
        norms: list[Any] = [module for module in modules if type(module).forward in FORWARDS]
        try:
            for norm in norms:
                norm.forward = _of_all_ranks(norm)
            yield
        finally:
            for norm in norms:
                del norm.forward


def averaged_once(loss: Callable[..., Tensor], is_last: bool) -> AbstractContextManager[object]:
    """Have a loss of `Ranks.averaging` wait for the other ranks after the last batch of a step alone; any other does as ever."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) and not is_last else nullcontext()


class _Loss(nn.Module):
    """A loss as a module that has the parameters it depends on, as DistributedDataParallel takes it."""

    def __init__(self, loss: Callable[..., Tensor], learners: Sequence[nn.Module]) -> None:
        super().__init__()
        self.learners, self._loss = nn.ModuleList(learners), loss

    def forward(self, *batch: Any) -> Tensor:
        return self._loss(*batch)


class _Mean(torch.autograd.Function):
    """The mean over ranks of a tensor, and backwards of its gradient."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        distributed.all_reduce(total)
        return total / distributed.get_world_size()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # it takes any number
        return _Mean.apply(gradient)


def _of_all_ranks(norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        if not norm.training:
            return type(norm).forward(norm, values)
        axes = [0, *range(2, values.ndim)]
        shape = [1, -1, *[1] * (values.ndim - 2)]
        mean = _Mean.apply(values.float().mean(axes))
        gaps = values - mean.view(shape)
        variance = _Mean.apply(gaps.square().mean(axes))
        count = values.numel() // values.shape[1] * distributed.get_world_size()
        _note(norm, mean.detach(), variance.detach() * (count / (count - 1)))
        made = (gaps * (variance + norm.eps).rsqrt().view(shape)).to(values.dtype)
        return made * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else made

    return forward


@torch.no_grad()
def _note(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move a batch-norm's running statistics, as torch does."""
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
