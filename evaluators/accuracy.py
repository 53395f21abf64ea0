"""Accuracy of the artifact, run by its runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compression.batches import arrays_of, labelled_batches, outputs_of
from ..compression.recovery.outputs import OutputKinds, output_kinds
from ..core.batch import HOST, Batch, rows, taken, tensors_of
from ..core.errors import EvaluationError, describe_exception
from ..core.interrupts import raise_if_interrupted
from ..core.machine.memory import give_back
from ..core.measurement import Measurement
from ..core.metrics import METRICS, metrics_named
from ..core.statistics import NORMAL_QUANTILE
from ..core.time_limit import time_limited
from ..hardware_profiles.bench.lock import sharing_gpu
from ..hardware_profiles.runtimes.base import Artifact
from ..hardware_profiles.runtimes.registry import RUNTIMES
from ..workloads.metrics import quality_of
from ..workloads.workload import MapDataset
from .agreement import Agreement
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register
from .scores import Scores, Scoring


def score(
    artifact: Artifact,
    data: MapDataset,
    context: Context,
    keep: Path | None = None,
    reference: Scores | None = None,
    has_losses: bool = False,
    agreement: Agreement | None = None,
) -> Scores:
    """Run `artifact` over `data` on its runtime, batch by batch; the last batch is filled with its first sample, and cut again.

    Args:
        keep: the folder to keep the outputs in, for the damage of others.
        reference: what the damage is found against: scores of the same data whose outputs were kept.
        has_losses: whether to find the cross-entropy too.
        agreement: compares the first outputs with the torch model's.

    Raises:
        LoweringError: the runtime refuses the artifact.
        EvaluationError: an output is NaN or infinite, of which no class can be picked, the metric is no finite number, or the artifact
            computes something else than the torch model; or it takes longer than `context.scoring_limit_s`.
    """
    limited = time_limited(context.scoring_limit_s, "scoring took longer than trial_timeout_s")
    with limited, sharing_gpu(context.target.runtime):
        batches = _run(artifact, data, context, agreement)
        scores = Scoring(context.workload, len(data), keep, reference, has_losses).scores(batches)
    torch.set_num_threads(context.threads)  # of the process, which a session of torch's sets to its own
    give_back()  # of the session, before the torch model is copied
    if agreement is not None:
        agreement.require()
    return scores


def _run(
    artifact: Artifact, data: MapDataset, context: Context, agreement: Agreement | None
) -> Iterator[tuple[Batch, Any]]:
    """(outputs, targets) of batch after batch."""
    target, batch = context.target, context.target.batch
    threads = min(target.threads, context.threads) if RUNTIMES[target.runtime].spins else context.threads
    session = context.runtime.load(artifact.path, target, threads)
    for number, (inputs, targets) in enumerate(labelled_batches(data, batch, HOST)):
        count = rows(inputs)
        filled = inputs if count == batch else taken(inputs, [*range(count), *[0] * (batch - count)])
        made = session.run(arrays_of(filled))
        outputs = outputs_of({name: array[:count] for name, array in made.items()})
        _require_finite(outputs, number * batch)
        if agreement is not None:
            agreement.watch(filled, outputs)
        yield outputs, targets


def _require_finite(outputs: Batch, first: int) -> None:
    """Raise unless all outputs [n, ...] are finite; they are of the samples from number `first` on."""
    for tensor in tensors_of(outputs):
        finite = tensor.isfinite().reshape(len(tensor), -1).all(1)
        if not finite.all():
            sample = first + int(finite.int().argmin())
            raise EvaluationError(f"the artifact's output on sample {sample} of the split is not finite")


@register
class Accuracy(Evaluator):
    """The workload's metric on the search-validation split and what was lost of it; the damage, of one classifier as KL, and its
    cross-entropy unless the workload has its own loss."""

    name = "accuracy"
    metrics = metrics_named("accuracy", "accuracy_drop", "cross_entropy", "kl", "damage")
    phases = ("scored", "recovered")

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        artifact, workload = needed(lowered.artifact, "accuracy needs an artifact"), context.workload
        reference = context.reference.validation if context.reference else None
        kinds = output_kinds(workload)
        has_losses = workload.loss is None and kinds.read_by_cross_entropy
        agreement = None if lowered.candidate is None else Agreement.of(lowered.candidate, context)
        scores = score(artifact, workload.validation, context, None, reference, has_losses, agreement)
        measured = accuracy_measurements(scores, reference or scores, context)
        if scores.losses is not None:
            measured.append(mean_of("cross_entropy", scores.losses))
        damage = torch.zeros(scores.n, dtype=torch.float64)  # of the reference itself
        if reference is not None:
            damage = needed(scores.damage, "the reference's outputs were not kept")
        return [*measured, mean_of(damage_metric(kinds), damage)]


@register
class ConfirmedAccuracy(Evaluator):
    """The workload's metric on the test split, and how far it fell."""

    name = "test accuracy"
    metrics = metrics_named("test_accuracy", "test_accuracy_drop")
    phases = ("confirmed",)

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        artifact = needed(lowered.artifact, "test accuracy needs an artifact")
        reference = needed(
            context.reference and context.reference.test, "test accuracy needs a reference's test scores"
        )
        try:
            scores = lowered.test or score(artifact, context.workload.test, context)
            return accuracy_measurements(scores, reference, context, prefix="test_")
        except BaseException as error:  # the user's metric may raise anything
            raise_if_interrupted(error)
            raise EvaluationError(f"cannot be scored on the test split: {describe_exception(error)}") from error


def accuracy_measurements(scores: Scores, reference: Scores, context: Context, prefix: str = "") -> list[Measurement]:
    """`accuracy` and `accuracy_drop` (their names after `prefix`), with intervals, in the unit of the workload's metric."""
    unit = quality_of(context.workload.metric, reference.value).unit
    low, high, method = scores.interval()
    drop, drop_low, drop_high, drop_method = scores.drop_from(reference)
    return [
        Measurement(f"{prefix}accuracy", scores.value, low, high, unit, scores.n, method),
        Measurement(f"{prefix}accuracy_drop", drop, drop_low, drop_high, unit, scores.n, drop_method),
    ]


def damage_metric(kinds: OutputKinds) -> str:
    """The name of the metric that holds the damage of outputs of these kinds."""
    return "kl" if kinds.are_one_classifier else "damage"


def mean_of(name: str, values: Tensor) -> Measurement:
    """The mean of values [n] with its normal 95 % interval."""
    mean, n = float(values.mean()), len(values)
    half = NORMAL_QUANTILE * float(values.std()) / n**0.5 if n > 1 else 0.0
    return Measurement(name, mean, mean - half, mean + half, METRICS[name].unit, n, "normal")
