"""Whether a worker is able to run trials at all, tried with the uncompressed model: where that fails, no policy is at fault."""

from __future__ import annotations

import torch

from ...compression.batches import labelled_batches
from ...core.batch import device_of
from ...evaluators.evaluator import Context, LoweredCandidate
from ...evaluators.registry import measure
from ...workloads.workload import Workload
from .baseline import uncompressed


def check_scoring(context: Context) -> None:
    """Score the reference as every candidate is scored; raises what the user's code or the runtime raises."""
    if context.reference is not None:
        candidate = uncompressed(context, context.reference.precision)
        measure(LoweredCandidate(candidate, context.reference.artifact), context, "scored")


@torch.no_grad()
def check_loss(workload: Workload, batch_size: int) -> None:
    """Compute the loss of the uncompressed model on one batch of training data; raises what the user's code raises."""
    inputs, targets = next(iter(labelled_batches(workload.train, batch_size, device_of(workload.example_input))))
    workload.loss_function(workload.model.eval()(inputs), targets)
