"""The evaluators there are, and which of them a phase of a trial runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..core.errors import EvaluationError, UserError
from ..core.measurement import Measurement
from ..core.metrics import METRICS, Metric, Phase
from ..hardware_profiles.cards.target import Target
from .evaluator import Context, Evaluator, LoweredCandidate

E = TypeVar("E", bound=Evaluator)

_EVALUATORS: dict[str, Evaluator] = {}


def register(evaluator: type[E]) -> type[E]:
    """Have searches of this process and their workers run an evaluator; a class decorator. Its new metrics are registered too.

    An installed package offers one without calling this: by entry points in the group `slimfront.evaluators`, named as its
    metrics. It runs in the studies that name one of them, in every process.

    Raises:
        UserError: it is not an `Evaluator`, its name is taken, a metric of another meaning has one of its metrics' names, or another
            evaluator makes one of them in the same phase.
    """
    _require_new(evaluator)
    for metric in evaluator.metrics:
        if metric.name not in METRICS:
            METRICS.register(metric.name, metric)
    _EVALUATORS[evaluator.name] = evaluator()
    return evaluator


def added_evaluators() -> list[type[Evaluator]]:
    """The classes of evaluators that slimfront does not bring itself, for `adopt` in other processes."""
    package = Evaluator.__module__.split(".")[0]
    return [
        type(evaluator) for evaluator in _EVALUATORS.values() if type(evaluator).__module__.split(".")[0] != package
    ]


def adopt(added: Iterable[type[Evaluator]]) -> None:
    """Register what `added_evaluators` found in another process, unless importing its module has done so."""
    for evaluator in added:
        if evaluator.name not in _EVALUATORS:
            register(evaluator)


def evaluators(names: Iterable[str] = ()) -> list[Evaluator]:
    """The registered evaluators and those of installed packages for the metrics `names`, in the order of metrics."""
    for offered in dict.fromkeys(map(METRICS.evaluator, names)):
        if offered is not None and offered not in map(type, _EVALUATORS.values()):
            register(offered)
    return sorted(_EVALUATORS.values(), key=_place)


def measure(lowered: LoweredCandidate, context: Context, *phases: Phase) -> list[Measurement]:
    """All measurements of a candidate by the evaluators of these phases.

    Raises:
        EvaluationError: a number cannot be produced.
    """
    chosen = list(_chosen(context, set(phases)))
    return [measurement for evaluator in chosen for measurement in evaluator.evaluate(lowered, context)]


def require_available(metric: str, target: Target) -> None:
    """Check that a target provides a metric. For a remote target only its card is checked.

    Raises:
        EvaluationError: it does not; the message says why.
    """
    makers = [evaluator for evaluator in evaluators([metric]) if METRICS[metric] in evaluator.metrics]
    refusals = [evaluator.refusal(target) for evaluator in makers]
    reasons = [refusal for refusal in refusals if refusal is not None]
    if len(reasons) == len(makers):
        raise EvaluationError(next(iter(reasons), "no evaluator makes it"))


def _chosen(context: Context, phases: set[Phase]) -> Iterator[Evaluator]:
    """The evaluators of some phases that the study needs and the target supports."""
    named = set(context.metrics)
    for evaluator in evaluators(context.metrics):
        is_named = not named.isdisjoint(metric.name for metric in evaluator.metrics)
        if phases.isdisjoint(evaluator.phases) or (evaluator.on_request and not is_named):
            continue
        if (refusal := evaluator.refusal(context.target)) is None:
            yield evaluator
        elif evaluator.on_request:
            raise EvaluationError(refusal)


def _place(evaluator: Evaluator) -> int:
    order = list(METRICS)
    return min(order.index(metric.name) for metric in evaluator.metrics)


def _require_new(evaluator: object) -> None:
    if not (isinstance(evaluator, type) and issubclass(evaluator, Evaluator)):
        raise UserError(f"{evaluator} is not a subclass of {Evaluator.__module__}.{Evaluator.__name__}")
    if evaluator.name in _EVALUATORS:
        raise UserError(f"evaluator {evaluator.name!r} is already registered; known are {', '.join(_EVALUATORS)}")
    for metric in evaluator.metrics:
        if metric.name in METRICS and METRICS[metric.name] != metric:
            raise UserError(f"metric {metric.name!r} is already registered; known are {', '.join(METRICS)}")
        if rival := next((other.name for other in _EVALUATORS.values() if _rivals(evaluator, other, metric)), None):
            raise UserError(
                f"evaluator {evaluator.name!r} makes {metric.name}, which {rival!r} makes in the same phase"
            )


def _rivals(one: type[Evaluator], other: Evaluator, metric: Metric) -> bool:
    """Whether both would make a metric in one phase on one target."""
    apart = {one.source, other.source} == {"bench", "table"}
    return metric in other.metrics and not apart and not set(one.phases).isdisjoint(other.phases)
