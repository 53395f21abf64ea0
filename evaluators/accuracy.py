"""Accuracy of the artifact, run by its runtime."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..compression.batches import arrays_of, loader, outputs_of
from ..core.batch import rows, taken
from ..core.errors import EvaluationError, describe_exception
from ..core.interrupts import raise_if_interrupted
from ..core.measurement import Measurement
from ..core.metrics import METRICS, metrics_named
from ..core.statistics import NORMAL_QUANTILE
from ..hardware_profiles.bench.lock import alone_on_gpu
from ..hardware_profiles.runtimes.base import Artifact
from ..hardware_profiles.runtimes.registry import RUNTIMES
from ..workloads.workload import MapDataset
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register
from .scores import Scores, concatenate


def score(artifact: Artifact, data: MapDataset, context: Context) -> Scores:
    """Run `artifact` over `data` on its runtime, batch by batch; the last batch is filled with its first sample, and cut again.

    Raises:
        LoweringError: the runtime refuses the artifact.
        EvaluationError: an output is NaN or infinite, of which no class can be picked.
    """
    target = context.target
    threads = min(target.threads, context.threads) if RUNTIMES[target.runtime].spins else context.threads
    batch = target.batch
    parts = []
    with alone_on_gpu(target.runtime):
        session = context.runtime.load(artifact.path, target, threads)
        for inputs, targets in loader(data, batch):
            count = rows(inputs)
            filled = inputs if count == batch else taken(inputs, [*range(count), *[0] * (batch - count)])
            found = {name: array[:count] for name, array in session.run(arrays_of(filled)).items()}
            for outputs in found.values():
                _require_finite(outputs, len(parts) * batch)
            parts.append((outputs_of(found), targets))
    torch.set_num_threads(context.threads)  # of the process, which a session of torch's sets to its own
    return concatenate(parts, context.workload.metric)


def _require_finite(outputs: np.ndarray, first: int) -> None:
    """Raise unless all outputs [n, ...] are finite; they are of the samples from number `first` on."""
    finite = np.isfinite(outputs).reshape(len(outputs), -1).all(1)
    if not finite.all():
        raise EvaluationError(
            f"the artifact's output on sample {first + int(finite.argmin())} of the split is not finite"
        )


@register
class Accuracy(Evaluator):
    """The workload's metric on the search-validation split, how far it fell; cross-entropy and KL unless the workload has its own loss."""

    name = "accuracy"
    metrics = metrics_named("accuracy", "accuracy_drop", "cross_entropy", "kl")
    phases = ("scored", "recovered")

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        artifact = needed(lowered.artifact, "accuracy needs an artifact")
        scores = score(artifact, context.workload.validation, context)
        reference = context.reference.validation if context.reference else None
        measured = accuracy_measurements(scores, reference or scores)
        if context.workload.loss is None:
            measured += [cross_entropy(scores), kl_divergence(scores, reference or scores)]
        return measured


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
            scores = score(artifact, context.workload.test, context)
            return accuracy_measurements(scores, reference, prefix="test_")
        except BaseException as error:  # the user's metric may raise anything
            raise_if_interrupted(error)
            raise EvaluationError(f"cannot be scored on the test split: {describe_exception(error)}") from error


def accuracy_measurements(scores: Scores, reference: Scores, prefix: str = "") -> list[Measurement]:
    """`accuracy` and `accuracy_drop` (their names after `prefix`), with intervals."""
    low, high, method = scores.interval()
    n = rows(scores.outputs)
    drop, drop_low, drop_high, drop_method = scores.drop_from(reference)
    return [
        Measurement(f"{prefix}accuracy", scores.value(), low, high, METRICS["accuracy"].unit, n, method),
        Measurement(f"{prefix}accuracy_drop", drop, drop_low, drop_high, METRICS["accuracy_drop"].unit, n, drop_method),
    ]


def cross_entropy(scores: Scores) -> Measurement:
    """Mean cross-entropy of logits [n, classes] against class indices [n], with the normal interval of the mean."""
    assert isinstance(scores.outputs, Tensor), "several outputs have a loss of their own"
    assert isinstance(scores.targets, Tensor), "several outputs have a loss of their own"
    losses = functional.cross_entropy(scores.outputs, scores.targets, reduction="none").double()
    return _mean("cross_entropy", losses)


def kl_divergence(scores: Scores, reference: Scores) -> Measurement:
    """Mean KL(reference || scores) of the class probabilities of logits [n, classes] on the same samples, in nats."""
    assert isinstance(scores.outputs, Tensor), "several outputs have a loss of their own"
    assert isinstance(reference.outputs, Tensor), "several outputs have a loss of their own"
    expected, found = (logits.double().log_softmax(1) for logits in (reference.outputs, scores.outputs))
    return _mean("kl", functional.kl_div(found, expected, reduction="none", log_target=True).sum(1).clamp_min(0))


def _mean(name: str, values: Tensor) -> Measurement:
    """The mean of values [n] with its normal 95 % interval."""
    mean, n = float(values.mean()), len(values)
    half = NORMAL_QUANTILE * float(values.std()) / n**0.5 if n > 1 else 0.0
    return Measurement(name, mean, mean - half, mean + half, METRICS[name].unit, n, "normal")
