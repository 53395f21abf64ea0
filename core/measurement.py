"""A measured number and the catalogue of what slimfront measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Metric:
    """What a number means: its name, unit and which way is better."""

    name: str
    unit: str
    direction: Direction
    meaning: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "accuracy",
            "fraction",
            "maximize",
            "the workload's metric on the search-validation split, computed by the runtime from the artifact",
        ),
        Metric(
            "accuracy_drop",
            "fraction",
            "minimize",
            "accuracy of the uncompressed artifact minus this one's, on the same split",
        ),
        Metric(
            "cross_entropy",
            "nats",
            "minimize",
            "mean cross-entropy of the artifact's outputs on the search-validation split",
        ),
        Metric(
            "kl",
            "nats",
            "minimize",
            "mean Kullback-Leibler divergence of the artifact's class probabilities from the uncompressed artifact's, search-validation split",
        ),
        Metric("test_accuracy", "fraction", "maximize", "accuracy on the test split, scored once, at the end"),
        Metric(
            "test_accuracy_drop", "fraction", "minimize", "accuracy_drop on the test split, scored once, at the end"
        ),
        Metric(
            "flops",
            "FLOPs",
            "minimize",
            "multiply-adds of one sample counted by fvcore (one fused multiply-add is one FLOP)",
        ),
        Metric("bops", "BOPs", "minimize", "sum over layers of multiply-adds x weight bits x activation bits"),
        Metric("parameters", "count", "minimize", "parameters left after channel pruning; masked weights count"),
        Metric("artifact_bytes", "bytes", "minimize", "size of the artifact file the runtime loads"),
        Metric(
            "packed_bytes",
            "bytes",
            "minimize",
            "tensors of the packed file: weights at the policy's bit-widths, dense, as a bitmap or as CSR, whichever is smallest, "
            "with scales and tables; counted until it is written, at first without grids of additions and with every batch-norm",
        ),
        Metric("latency_ms", "ms", "minimize", "paired ratio x the reference's quiet latency on the target, one batch"),
        Metric(
            "latency_p50_ms", "ms", "minimize", "median of the candidate's single runs, whatever disturbed the machine"
        ),
        Metric("latency_p90_ms", "ms", "minimize", "90th percentile of the same runs"),
        Metric("latency_p99_ms", "ms", "minimize", "99th percentile of the same runs"),
        Metric(
            "peak_memory_bytes",
            "bytes",
            "minimize",
            "resident memory that loading and running the artifact needs at its peak, beyond its library",
        ),
        Metric(
            "energy_j",
            "J",
            "minimize",
            "energy of a run, one batch in every stream, by the machine's counters (RAPL, NVML), all they cover",
        ),
        Metric("throughput", "samples/s", "maximize", "batch x streams / latency_ms"),
        Metric(
            "speedup",
            "ratio",
            "maximize",
            "reference latency / candidate latency, from paired runs on the same runtime, on the calm machine",
        ),
    )
}


PREDICTED = "predicted"
"""What the method of a predicted number begins with."""


@dataclass(frozen=True)
class Measurement:
    """One measured number; never a bare float.

    Attributes:
        name: a key of `METRICS`.
        value: the point estimate, in `unit`.
        low, high: bounds of the 95 % interval; both equal to `value` where the number is exact.
        unit: the unit `value`, `low` and `high` share.
        n: how many observations stand behind it (samples, timing pairs; 1 for a count).
        method: how it was obtained, in a few words, e.g. "wilson", "paired-median", "fvcore".
        noisy: the interval stayed wider than the protocol asks for.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    n: int = 1
    method: str = "exact"
    noisy: bool = False

    @classmethod
    def exact(cls, name: str, value: float, method: str) -> Measurement:
        """A number without spread, such as a count, with the unit of `METRICS[name]`."""
        return cls(name, value, value, value, METRICS[name].unit, 1, method)

    @property
    def is_predicted(self) -> bool:
        """Whether the number was predicted for a machine that was not there, and not measured."""
        return self.method.startswith(PREDICTED)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)
