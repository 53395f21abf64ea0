"""A latency table measured: random policies of a study compressed, timed, and a sum over layers fitted to them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..compression.pruning.prune import pruned_copy
from ..compression.quantization.candidates import make_candidate
from ..core.errors import TargetError
from ..hardware_profiles.bench.paired_timing import PairedTiming
from ..hardware_profiles.bench.timer import TIMING_SECONDS
from ..hardware_profiles.cards.latency_table import Costs, LatencyTable
from ..hardware_profiles.cards.target import Target
from ..hardware_profiles.profiling.prediction import calls_of, cost_units, fit_table, layers_of
from ..hardware_profiles.runtimes.base import get_runtime
from ..hardware_profiles.runtimes.lowered import lowered
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.policy import Policy
from ..studies.store.database import absolute_url
from ..studies.store.store import Store
from ..studies.study_file.load import load_study
from ..studies.study_file.spec import StudySpec
from ..workloads.load import working_in
from .trials.baseline import lower_reference
from .trials.prepared_study import PreparedStudy, prepare

POLICIES = 80


def add_table(target: Target, study: str, storage: str, console: Console) -> Target:
    """`target` with a latency table for a study's model, stored in place of the target's card.

    Raises:
        UserError: the study's file or what it names is wrong.
        TrialError: a policy of its space cannot be compressed, lowered or timed.
    """
    spec, url = load_study(study), absolute_url(storage)
    with working_in(spec.base_folder):
        return _add_table(target, spec, url, console)


def require_one_shape(target: Target) -> None:
    """See that a latency table can be fitted to a target.

    Raises:
        TargetError: latency is timed at shapes that its card names.
    """
    if target.shapes:
        names = ", ".join(shape.name for shape in target.shapes)
        raise TargetError(
            f"target {target.name} is timed at {names}, and a latency table predicts one shape, the example's; "
            "leave shapes out of the card"
        )


def _add_table(target: Target, spec: StudySpec, storage: str, console: Console) -> Target:
    prepared = prepare(spec)
    context = replace(prepared.context, target=target, runtime=get_runtime(target.runtime))
    with Store(storage) as store, Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"timing policies of {spec.study}", total=POLICIES)
        table = measure_table(
            replace(prepared, context=context), POLICIES, progress=lambda done, _: progress.update(task, completed=done)
        )
        found = target.model_copy(update={"latency_table": table})
        store.save_target(
            target.name, found.model_dump(mode="json"), target.measured.machine if target.measured else {}
        )
    return found


def measure_table(
    prepared: PreparedStudy, policies: int, seed: int = 0, progress: Callable[[int, int], None] = lambda *_: None
) -> LatencyTable:
    """Time `policies` random policies of the study's space and fit a table to them.

    Raises:
        TrialError: a policy of the space cannot be compressed, lowered or timed.
    """
    reference_ms, units, timings = time_policies(prepared, random_policies(prepared, policies, seed), progress)
    spread = [timing.high / timing.speedup - 1 for timing in timings]
    relative = [1 / timing.speedup for timing in timings]
    return fit_table(layers_of(prepared.context.workload.model), units, relative, spread, reference_ms)


def time_policies(
    prepared: PreparedStudy, policies: Sequence[Policy], progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[float, list[Costs], list[PairedTiming]]:
    """The reference's latency in milliseconds, and for each policy what it is charged for and how fast it is.

    Raises:
        TrialError: a policy cannot be compressed, lowered or timed.
    """
    model, example = prepared.context.workload.model, prepared.context.workload.example_input
    reference_calls = calls_of(model, example)
    units: list[Costs] = []
    timings: list[PairedTiming] = []
    with tempfile.TemporaryDirectory(prefix="slimfront-table-") as folder:
        reference = lower_reference(prepared.context, Path(folder) / "reference")
        with prepared.bench(reference) as bench:
            reference_ms, *_ = bench.time_reference(TIMING_SECONDS)
            for policy in policies:
                progress(len(units), len(policies))
                candidate = compress(prepared, policy)
                path = Path(folder) / f"candidate{prepared.context.runtime.suffix}"
                artifact = lowered(prepared.context.runtime, candidate, example, prepared.target, path)
                timings.append(bench.time(artifact.path, TIMING_SECONDS))
                units.append(cost_units(policy, calls_of(candidate.model, example), reference_calls))
    return reference_ms, units, timings


def random_policies(prepared: PreparedStudy, count: int, seed: int) -> list[Policy]:
    """Policies of the study's space, every knob drawn evenly."""
    generator = random.Random(seed)
    space = prepared.space
    return [space.policy({knob.name: generator.choice(knob.choices) for knob in space.knobs}) for _ in range(count)]


def compress(prepared: PreparedStudy, policy: Policy) -> Candidate:
    """The candidate of a policy as far as latency goes: weights are not recovered."""
    workload = prepared.context.workload
    model = pruned_copy(workload.model, workload.example_input, policy, prepared.groups)
    return make_candidate(model, workload.example_input, policy, workload.calibration)
