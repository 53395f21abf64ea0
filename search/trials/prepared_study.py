"""What a study asks, made concrete: its workload loaded, its target read, its space built. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...compression.batches import CALIBRATION_BATCH, input_batches
from ...compression.pruning.criteria import get_criterion
from ...compression.pruning.proof import proven_groups
from ...compression.recovery.distil import get_distiller
from ...compression.recovery.feature_taps import tapped_modules
from ...compression.recovery.teachers import Teacher
from ...core.errors import CompressionError, EvaluationError, PolicyError, StudyFileError, TargetError, WorkloadError
from ...core.threads import usable_threads
from ...evaluators.evaluator import Context
from ...evaluators.registry import require_available
from ...hardware_profiles.bench.bench import bench_cores
from ...hardware_profiles.bench.timer import Timer
from ...hardware_profiles.cards.target import Target, load_target
from ...hardware_profiles.profiling.fingerprint import machine, require_fit, versions
from ...hardware_profiles.profiling.prediction import layers_of
from ...hardware_profiles.runtimes.base import Artifact, Runtime, get_runtime
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...spaces.choices import keys_of_targets
from ...spaces.families import family_of
from ...spaces.knobs.kind import KnobKind
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.models.blocks import block_influence, find_removable_blocks, least_influential_first
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import Layer, find_layers
from ...spaces.policies.float_precision import FLOAT32, FloatPrecision
from ...spaces.space import Space
from ...studies.study_file.spec import FLOAT_PRECISION, StudySpec
from ...workloads.contract import held
from ...workloads.workload import Workload
from ..cluster.timers import timer_of
from .given_workload import loaded_workload, pickled_workload


@dataclass(frozen=True)
class PreparedStudy:
    """A study ready to be searched.

    Attributes:
        written: the study as its file has it; `spec` has what its preset fills in.
        context: workload, target and runtime; without bench and reference, which need measuring first.
        groups: channel groups that can be pruned; `unprunable` maps the others to the reason.
        pickled_workload: the workload as it was given, where that was an object of the program that searches; else None.
    """

    spec: StudySpec
    written: StudySpec
    context: Context
    layers: list[Layer]
    groups: list[ChannelGroup]
    unprunable: Mapping[str, str]
    space: Space
    pickled_workload: bytes | None = None

    @property
    def target(self) -> Target:
        """Where candidates run."""
        return self.context.target

    def bench(self, reference: Artifact) -> Timer:
        """A timer of this target, its reference the uncompressed model's artifact."""
        example = self.context.workload.example_input
        return timer_of(self.target, reference.path, example, bench_cores(self.target.threads))

    def float_precisions(self) -> tuple[tuple[FloatPrecision, ...], FloatPrecision]:
        """The precisions in which the target computes a whole model's floats differently, its default first, and what that is.

        Raises:
            TargetError: the target is a node of the Ray cluster, and the cluster has none.
        """
        if self.target.predict:  # a latency table is fitted to the model in float32
            return (FLOAT32,), FLOAT32
        if self.target.remote:
            from ..cluster.remote_bench import remote_precisions  # only here: importing ray takes a second

            return remote_precisions(self.target)
        return self.context.runtime.float_precisions(self.target), self.context.runtime.default_float_precision(
            self.target
        )

    def settled(self, spec: StudySpec, precision: FloatPrecision) -> PreparedStudy:
        """This study with its space as the choice of its reference settles it.

        Args:
            precision: the reference's, which the policies that a search starts from have.

        Raises:
            UserError: the space does not fit the workload.
        """
        if precision == FLOAT32 and spec.to_json() == self.spec.to_json():
            return self
        space = _built_space(spec, self.context.workload, self.layers, self.groups, precision)
        return replace(self, spec=spec, space=space)

    def measured_with(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The machine that candidates are timed on, and its versions.

        Raises:
            TargetError: it is a node of the Ray cluster, and the cluster has none, another than the card's, or one that
                cannot measure what the study asks for.
        """
        if self.target.remote:
            from ..cluster.remote_bench import remote_machine  # only here: importing ray takes a second

            return remote_machine(self.target, self.spec.metrics)
        return machine(), versions(self.context.runtime)


def prepare(spec: StudySpec, given: Workload | None = None) -> PreparedStudy:
    """Load what `spec` names and build its space.

    Args:
        given: the workload itself, where it is an object of this program that `spec` cannot name.

    Raises:
        UserError: the workload or the target cannot be had, or the space does not fit them.
    """
    with _naming(spec, "target"):
        target = load_target(spec.target, spec.base_folder)
        runtime = _runtime_here(target)
        if not target.remote:  # where it is remote, the node sees to it
            require_fit(target, runtime)
    _check_runtime(spec, target)
    _check_metrics(spec, target)
    threads = usable_threads()
    torch.set_num_threads(threads)
    with _naming(spec, "workload"):
        pickled = None if given is None else pickled_workload(given)
        workload = held(loaded_workload(spec.workload, spec.workload_options, spec.base_folder, pickled))
    model, example = workload.model.eval(), workload.example_input
    if target.predict and target.latency_table is not None and target.latency_table.model != layers_of(model):
        raise StudyFileError(spec.file, "target", f"the latency table of {target.name} was fitted to another model")
    written = spec
    spec = spec.with_preset(family_of(model, example), {key: getattr(target, key) for key in keys_of_targets()})
    _check_recovery(spec, workload)
    layers = find_layers(model, example)
    groups, unprunable = proven_groups(workload)
    space = _built_space(spec, workload, layers, groups)
    context = Context(workload, target, runtime, threads=threads, metrics=spec.metrics)
    return PreparedStudy(spec, written, context, layers, groups, unprunable, space, pickled)


def _built_space(
    spec: StudySpec,
    workload: Workload,
    layers: Sequence[Layer],
    groups: Sequence[ChannelGroup],
    precision: FloatPrecision = FLOAT32,
) -> Space:
    model, example, choices = workload.model, workload.example_input, spec.space.choices()
    for index, name in enumerate(choices["criterion"]):
        with _naming(spec, f"space.criterion.{index}"):
            get_criterion(str(name))
    blocks = find_removable_blocks(model, example) if choices.decides_on("block", "ranking") else []
    ranking = _ranked(workload, blocks) if choices.decides_on("ranking") else ()
    scheme = spec.quantization.scheme()
    usual = {FLOAT_PRECISION: precision}
    space = Space(layers, groups, choices, spec.recovery.settings(), blocks, scheme, ranking, usual)
    if not space.knobs:
        problem = "nothing is left to choose: every layer is kept back or cannot be pruned"
        raise StudyFileError(spec.file, "space", problem)
    return space


def _check_recovery(spec: StudySpec, workload: Workload) -> None:
    """Refuse a distiller or teachers that the model has no place for, by the key that asks for them."""
    recovery = spec.recovery.settings()
    with _naming(spec, "recovery.distiller"):
        tap = get_distiller(recovery.distiller, recovery.temperature).tap
        tapped_modules(workload.model, workload.example_input, tap)
    with _naming(spec, "recovery.teachers"):
        Teacher(workload, recovery.teachers, None)


def _runtime_here(target: Target) -> Runtime:
    try:
        return get_runtime(target.runtime)
    except TargetError as error:
        if not (target.remote or target.predict):
            raise
        raise TargetError(f"{error}; elsewhere is only timed: candidates are lowered and scored here") from error


def _ranked(workload: Workload, blocks: Sequence[str]) -> list[str]:
    device = workload.example_input.device
    batches = (batch.to(device) for batch in input_batches(workload.calibration, CALIBRATION_BATCH))
    return least_influential_first(block_influence(workload.model, batches, blocks))


@contextmanager
def _naming(spec: StudySpec, key: str) -> Iterator[None]:
    """Have what goes wrong with a key's value name the study file and the key."""
    try:
        yield
    except (CompressionError, TargetError, WorkloadError, PolicyError) as error:
        raise StudyFileError(spec.file, key, str(error)) from error


def _check_metrics(spec: StudySpec, target: Target) -> None:
    for key, metrics in (("objectives", spec.objectives), ("constraints", [c.metric for c in spec.constraints])):
        for index, metric in enumerate(metrics):
            try:
                require_available(metric, target)
            except EvaluationError as error:
                raise StudyFileError(spec.file, f"{key}.{index}", f"{metric} cannot be measured: {error}") from error


def _check_runtime(spec: StudySpec, target: Target) -> None:
    """Refuse what the target cannot run, by the key that asks for it."""
    for kind in KNOB_KINDS.values():
        if (
            spec.space.preset == "none" or kind.key in spec.space.model_fields_set
        ):  # a preset offers what the target takes
            _check_choices(spec, target, kind)
    if RUNTIMES[target.runtime].symmetric and spec.quantization.scheme().activations != "symmetric":
        problem = f"must be symmetric: target {target.name} runs on {target.runtime}, which takes no other grids"
        raise StudyFileError(spec.file, "quantization.activations", problem)


def _check_choices(spec: StudySpec, target: Target, kind: KnobKind) -> None:
    for index, choice in enumerate(spec.space.offered(kind.key)):
        need = kind.needs.get(choice)
        if need is not None and not getattr(RUNTIMES[target.runtime], need.capability):
            problem = f"target {target.name} runs on {target.runtime}, which {need.lacking}"
            raise StudyFileError(spec.file, f"space.{kind.key}", problem)
        allowed = getattr(target, kind.key) if kind.is_listed_by_targets else (choice,)
        if choice not in allowed:
            problem = f"target {target.name} takes {', '.join(map(str, allowed))}, not {choice}"
            raise StudyFileError(spec.file, f"space.{kind.key}.{index}", problem)
