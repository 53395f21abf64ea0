"""The metrics slimfront knows: the one place that names them. Studies, fronts, samplers, reports and docs read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UserError
from .registry import Registry

Direction = Literal["minimize", "maximize"]

Role = Literal["quality", "count", "measured"]
"""How a metric follows from a policy: "quality" with what compression does to the outputs, "count" exactly and without running
anything, "measured" by running the artifact."""

Phase = Literal["counted", "timed", "scored", "recovered", "confirmed"]
"""When a number is made, in the order of a trial: "counted" before anything is lowered, "timed" on the artifact before recovery,
"scored" on its outputs, "recovered" once more after each look at the recovery, "confirmed" on the front at the search's end."""


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        name, unit: as study files, databases and reports have them.
        direction: which way is better.
        meaning: a phrase for the docs and the card.
        role: what the sampler learns it from. It counts flops, bops, parameters and packed_bytes of a policy before a trial, and
            learns any other "count" as it learns what is measured.
        phase: the first in which it is known; one that is confirmed is never searched for.
        margin: a value this much worse than the uncompressed model's is worth nothing, in the metric's unit; None for a tenth
            of that value. The hypervolume and the sampler take their reference point from it. A minimised metric that is 0 for the
            uncompressed model needs one: no value is better than a reference of 0.
        latency_power: the power of the reference's quiet latency that the number is proportional to: 1 of milliseconds that are that
            latency divided by a speed-up, -1 of what is divided by them, 0 of all others.
    """

    name: str
    unit: str
    direction: Direction
    meaning: str
    role: Role
    phase: Phase
    margin: float | None = None
    latency_power: int = 0

    @property
    def is_searchable(self) -> bool:
        """Whether objectives and constraints may name it: nothing of the test split is searched for."""
        return self.phase != "confirmed"


@dataclass(frozen=True)
class Quality:
    """What `accuracy` is in a study: the metric of its workload. `accuracy_drop` is how much of it is lost, in the same unit.

    Attributes:
        metric: its name.
        unit: of `accuracy` and `accuracy_drop`, and of the same on the test split.
        higher_is_better: whether a lower value is a loss.
        margin: a loss of so much is worth nothing, in the unit; as `Metric.margin`.
        outputs: what the model's outputs mean to the damage, in words; "" where it is not recorded.
    """

    metric: str = "accuracy"
    unit: str = "fraction"
    higher_is_better: bool = True
    margin: float = 0.1
    outputs: str = ""

    @property
    def words(self) -> str:
        """The metric with its unit and direction, as in "mse (squared units, lower is better)"."""
        return f"{self.metric} ({self.unit}, {'higher' if self.higher_is_better else 'lower'} is better)"


FRACTION = Quality()
"""The quality of studies of before there was another."""


class Metrics(Registry[Metric]):
    """Every metric by name, in the order of reports: slimfront's own, those a program registers, and those of installed packages.

    A package's entry point in the group `slimfront.evaluators` is named as a metric, and loads the evaluator that makes it.
    """

    def __getitem__(self, name: str) -> Metric:
        """The metric called `name`.

        Raises:
            UserError: unknown, offered twice, or of a package that cannot be imported or makes no such metric.
        """
        found: object = super().__getitem__(name)
        if isinstance(found, Metric):
            return found
        for metric in getattr(found, "metrics", ()):
            if metric.name == name:
                return metric
        raise UserError(f"the evaluator that an installed package offers for metric {name!r} does not make it")

    def evaluator(self, name: str) -> Any:
        """The class of the evaluator that an installed package offers for a metric; None where slimfront has one."""
        found: object = super().__getitem__(name)
        return None if isinstance(found, Metric) else found

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in super().__iter__() if name not in self._own)

    @property
    def searchable(self) -> frozenset[str]:
        """Names that objectives and constraints may have."""
        return frozenset(name for name in self if name not in self._own or self._own[name].is_searchable)

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the metrics that are counted."""
        return tuple(name for name, metric in self._own.items() if metric.role == "count")


METRICS = Metrics("metric", "slimfront.evaluators", UserError)


def metrics_named(*names: str) -> tuple[Metric, ...]:
    """The metrics of these names."""
    return tuple(METRICS[name] for name in names)


OF_QUALITY = ("accuracy", "accuracy_drop", "test_accuracy", "test_accuracy_drop")
"""The names of the metrics whose unit and margin are those of a study's `Quality`."""


def at_shape(metric: str, shape: str) -> str:
    """The name of a metric's figure at one of several shapes, as in "latency_ms[sequence=128]"; objectives name the mean only."""
    return f"{metric}[{shape}]"


def metric_of(measurement: str) -> str:
    """The metric that a measurement is of, at whatever shape."""
    return measurement.partition("[")[0]


def is_quality(name: str) -> bool:
    """Whether a metric judges the outputs on the search-validation split."""
    return name in METRICS and METRICS[name].role == "quality" and METRICS[name].is_searchable


def is_confirmed(names: Iterable[str]) -> bool:
    """Whether one of these metrics is made by the confirmation only."""
    return any(name in METRICS and not METRICS[name].is_searchable for name in names)


for _metric in (
    Metric(
        "accuracy",
        "fraction",
        "maximize",
        "the workload's metric, whatever it is, on the search-validation split, computed by the runtime from the artifact",
        "quality",
        "scored",
        margin=0.1,
    ),
    Metric(
        "accuracy_drop",
        "fraction",
        "minimize",
        "how much worse than the uncompressed artifact's this one's accuracy is, on the same split: positive where quality is lost, "
        "in the unit of the workload's metric, whichever way is better",
        "quality",
        "scored",
        margin=0.1,
    ),
    Metric(
        "cross_entropy",
        "nats",
        "minimize",
        "mean cross-entropy of the artifact's outputs on the search-validation split",
        "quality",
        "scored",
    ),
    Metric(
        "kl",
        "nats",
        "minimize",
        "mean Kullback-Leibler divergence of the artifact's class probabilities from the uncompressed artifact's, "
        "search-validation split",
        "quality",
        "scored",
        margin=0.5,  # leaves exp(-0.5) = 61 % of the probability on what the uncompressed model is sure of
    ),
    Metric(
        "damage",
        "nats or 1/SNR",
        "minimize",
        "how far the artifact's outputs are from the uncompressed artifact's where they are not those of one classifier: one over "
        "the signal-to-noise ratio of values, kl of classes, the weighted mean over several outputs; search-validation split",
        "quality",
        "scored",
        margin=0.5,
    ),
    Metric(
        "test_accuracy",
        "fraction",
        "maximize",
        "accuracy on the test split, scored once, at the end",
        "quality",
        "confirmed",
        margin=0.1,
    ),
    Metric(
        "test_accuracy_drop",
        "fraction",
        "minimize",
        "accuracy_drop on the test split, scored once, at the end",
        "quality",
        "confirmed",
        margin=0.1,
    ),
    Metric(
        "flops",
        "FLOPs",
        "minimize",
        "multiply-adds of one sample counted by fvcore (one fused multiply-add is one FLOP)",
        "count",
        "counted",
    ),
    Metric(
        "bops",
        "BOPs",
        "minimize",
        "sum over layers of multiply-adds x weight bits x activation bits",
        "count",
        "counted",
    ),
    Metric(
        "parameters",
        "count",
        "minimize",
        "parameters left after channel pruning; masked weights count",
        "count",
        "counted",
    ),
    Metric("artifact_bytes", "bytes", "minimize", "size of the artifact file the runtime loads", "count", "timed"),
    Metric(
        "packed_bytes",
        "bytes",
        "minimize",
        "tensors of the packed file: weights at the policy's bit-widths, dense, as a bitmap or as CSR, whichever is smallest, "
        "with scales and tables; an estimate until the file is written: first without the scales of additions, with all batch-norms",
        "count",
        "counted",
    ),
    Metric(
        "latency_ms",
        "ms",
        "minimize",
        "paired ratio x the reference's quiet latency on the target, one batch",
        "measured",
        "timed",
        latency_power=1,
    ),
    Metric(
        "latency_p50_ms",
        "ms",
        "minimize",
        "median of the candidate's single runs, whatever disturbed the machine",
        "measured",
        "timed",
    ),
    Metric("latency_p90_ms", "ms", "minimize", "90th percentile of the same runs", "measured", "timed"),
    Metric("latency_p99_ms", "ms", "minimize", "99th percentile of the same runs", "measured", "timed"),
    Metric(
        "peak_memory_bytes",
        "bytes",
        "minimize",
        "resident memory that loading and running the artifact needs at its peak, beyond its library",
        "measured",
        "timed",
    ),
    Metric(
        "load_ms",
        "ms",
        "minimize",
        "cold start: from the artifact's file, not in memory, to its first outputs, in a fresh process that has imported the "
        "runtime",
        "measured",
        "timed",
    ),
    Metric(
        "energy_j",
        "J",
        "minimize",
        "energy per run (one batch per stream), for everything that the machine's counters (RAPL, NVML) cover",
        "measured",
        "timed",
    ),
    Metric(
        "throughput",
        "samples/s",
        "maximize",
        "batch x streams / latency_ms",
        "measured",
        "timed",
        latency_power=-1,
    ),
    Metric(
        "speedup",
        "ratio",
        "maximize",
        "reference latency / candidate latency, from paired runs on the same runtime, on the quiet machine; the reference is the "
        "fastest way to deploy the uncompressed model that costs nothing",
        "measured",
        "timed",
    ),
    Metric(
        "speedup_float32",
        "ratio",
        "maximize",
        "speedup x the reference's own paired speed-up over the uncompressed model in float32; for comparison with papers",
        "measured",
        "timed",
    ),
):
    METRICS.register(_metric.name, _metric)
