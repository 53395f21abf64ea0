"""A bench on another machine: the Ray node that advertises `target:NAME` times for every search for that target.

Artifacts travel there by content, so that the node needs slimfront and the runtime but no shared folder. Each bench is an
actor of its own; that no two of them time at once is seen to by the machine's lock, as on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from ...core.errors import EvaluationError, TargetError
from ...evaluators.registry import require_available
from ...hardware_profiles.bench.bench import Bench, bench_cores
from ...hardware_profiles.bench.paired_timing import PairedTiming
from ...hardware_profiles.bench.shaped_batches import ShapedBatch
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.profiling.fingerprint import machine, require_fit, versions
from ...hardware_profiles.runtimes.base import computed_types, get_runtime
from ...spaces.policies.float_precision import FloatPrecision, FloatType
from .cluster import connect, is_cluster_named, ray  # before anything else of Ray

from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError  # isort: skip

SHARE = 0.001
"""The share of the node's `target:NAME` that one bench takes; the lock, not Ray, keeps benches apart."""

PATIENCE_SECONDS = 300
"""The seconds that a call may take beyond the timing itself: others may hold the bench, and a node may have to start Python."""


class RemoteBench:
    """A `Timer` on the node that advertises the target; its methods are documented there.

    Args:
        target: `remote`, and the same for everyone who measures on it.
        reference: the uncompressed model's artifact.
        inputs: one batch by name, each [batch, ...].
        shaped: batches of other shapes, as `Bench` takes them.

    Raises:
        TargetError: no node of the cluster advertises the target, or the card was measured on another machine.
    """

    def __init__(
        self,
        target: Target,
        reference: Path,
        inputs: Mapping[str, np.ndarray],
        shaped: Sequence[ShapedBatch] = (),
    ) -> None:
        remote_machine(target)
        self._name = target.name
        node = _there(_BenchActor, target)
        self._actor = node.remote(target.model_dump_json(), reference.name, reference.read_bytes(), inputs, shaped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def time(self, candidate: Path, seconds: float = 2.0, quiet_reference_ms: float = math.inf) -> PairedTiming:
        return self._ask(seconds, "time", candidate, seconds, quiet_reference_ms)

    def time_reference(self, seconds: float = 1.0) -> tuple[float, float, float, int]:
        return self._ask(seconds, "time_reference", None, seconds)

    def peak_memory(self, candidate: Path) -> int:
        return self._ask(0, "peak_memory", candidate)

    def load_times(self, candidate: Path, repeats: int) -> list[float]:
        return self._ask(0, "load_times", candidate, repeats)

    def energy(self, candidate: Path, seconds: float, repeats: int) -> tuple[str, list[float]]:
        return self._ask(seconds * (repeats + 1), "energy", candidate, seconds, repeats)

    def executed_precisions(self, candidate: Path) -> dict[str, str]:
        return self._ask(0, "executed_precisions", candidate)

    def ready(self) -> None:
        self._ask(0, "ready", None)

    def close(self) -> None:
        if ray.is_initialized():
            ray.kill(self._actor)

    def _ask(self, seconds: float, method: str, candidate: Path | None, *arguments: float) -> Any:
        file = (candidate.name, candidate.read_bytes()) if candidate is not None else None
        return _answer(self._actor.call.remote(method, file, *arguments), self._name, seconds)


def remote_machine(target: Target, metrics: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The machine that a remote target is on, and its versions.

    Args:
        metrics: that it has to be able to measure.

    Raises:
        TargetError: no node advertises the target, the card was measured on a different machine, or it cannot
            measure one of `metrics`.
    """
    return _answer(_there(_about, target).remote(target.model_dump_json(), metrics), target.name, 0)


def remote_float_types(target: Target) -> dict[FloatPrecision, FloatType]:
    """`computed_types` on the machine that a remote target is on.

    Raises:
        TargetError: no node advertises the target.
    """
    return _answer(_there(_float_types, target).remote(target.model_dump_json()), target.name, 0)


def _there(actor_or_task: Any, target: Target) -> Any:
    """An actor class or task that will run where the target is."""
    resource = f"target:{target.name}"
    if is_cluster_named():
        connect()
    if not ray.is_initialized() or resource not in ray.cluster_resources():
        raise TargetError(
            f"target {target.name} is remote, and no node of the Ray cluster advertises it; start Ray there with "
            f"--resources '{{\"{resource}\": 1}}' and name the cluster in RAY_ADDRESS"
        )
    return actor_or_task.options(num_cpus=0, resources={resource: SHARE})


def _answer(reference: Any, name: str, seconds: float) -> Any:
    try:
        return ray.get(reference, timeout=seconds + PATIENCE_SECONDS)
    except RayTaskError as error:
        raise error.cause from None
    except (RayActorError, GetTimeoutError) as error:
        raise EvaluationError(
            f"the node that measures for target {name} does not answer: {type(error).__name__}"
        ) from error


# Below: what runs on the target's node.


@ray.remote
def _about(target_json: str, metrics: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    target = Target.model_validate_json(target_json)
    runtime = get_runtime(target.runtime)
    require_fit(target, runtime)
    for metric in metrics:
        try:
            require_available(metric, target.model_copy(update={"remote": False}))
        except EvaluationError as error:
            raise TargetError(f"{metric} cannot be measured where target {target.name} is: {error}") from error
    return machine(), versions(runtime)


@ray.remote
def _float_types(target_json: str) -> dict[FloatPrecision, FloatType]:
    target = Target.model_validate_json(target_json)
    return computed_types(get_runtime(target.runtime), target)


@ray.remote(max_restarts=-1)
class _BenchActor:
    """A `Bench` and a folder for what it times; made again from the same arguments if its process dies."""

    def __init__(
        self,
        target_json: str,
        name: str,
        reference: bytes,
        inputs: Mapping[str, np.ndarray],
        shaped: Sequence[ShapedBatch],
    ) -> None:
        target = Target.model_validate_json(target_json)
        self._folder = TemporaryDirectory(prefix="slimfront-bench-")
        path, cores = self._written("reference", name, reference), bench_cores(target.threads)
        self._bench = Bench(target, path, inputs, cores, shaped)

    def call(self, method: str, file: tuple[str, bytes] | None, *arguments: float) -> Any:
        paths = [] if file is None else [self._written("candidate", *file)]
        return getattr(self._bench, method)(*paths, *arguments)

    def _written(self, role: str, name: str, content: bytes) -> Path:
        path = Path(self._folder.name) / role / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path
