"""What a study asks, held against its target and its workload: what cannot be had is refused by file and key.

`search` and `inspect` refuse by the same checks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from ...compression.pruning.criteria import get_criterion
from ...compression.recovery.distil import get_distiller
from ...compression.recovery.feature_taps import tapped_modules
from ...compression.recovery.teachers import Teacher
from ...compression.recovery.train import steps_of_an_epoch
from ...core.errors import CompressionError, EvaluationError, PolicyError, StudyFileError, TargetError, WorkloadError
from ...evaluators.registry import require_available
from ...hardware_profiles.cards.shape import shapes_problem
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.profiling.fingerprint import require_fit
from ...hardware_profiles.profiling.prediction import layers_of
from ...hardware_profiles.runtimes.base import Runtime, computed_types, get_runtime, require_installed
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...spaces.choices import SpaceChoices, keys_of_targets
from ...spaces.families import family_of
from ...spaces.knobs.kind import KnobKind, Need
from ...spaces.knobs.quantization import FLOATS
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.policies.float_precision import FLOAT_PRECISIONS, FloatPrecision
from ...spaces.policies.policy import Choice
from ...spaces.presets import PRESETS
from ...spaces.space import Space
from ...workloads.calls import sizes_of
from ...workloads.metrics import is_higher_better
from ...workloads.workload import Workload
from ..study_file.spec import StudySpec
from ..study_file.target import target_named


@contextmanager
def naming(spec: StudySpec, key: str) -> Iterator[None]:
    """Have what goes wrong with a key's value name the study file and the key."""
    try:
        yield
    except (CompressionError, TargetError, WorkloadError, PolicyError) as error:
        raise StudyFileError(spec.file, key, str(error)) from error


def target_of(spec: StudySpec) -> tuple[Target, Runtime]:
    """The target that a study names and its runtime, which takes what the study asks of them.

    Raises:
        StudyFileError: there is no such card, this machine is not as it says, or it lacks a choice or a metric.
    """
    with naming(spec, "target"):
        target = target_named(spec)
        require_installed(target.runtime)
        runtime = _runtime_here(target)
        if not target.remote:  # where it is remote, the node sees to it
            require_fit(target, runtime)
    check_target(spec, target)
    if not target.remote and not FLOATS.is_off(spec.space.offered(FLOATS.key)):
        check_floats(spec, target, float_types(target, runtime))
    return target, runtime


def check_target(spec: StudySpec, target: Target) -> None:
    """Refuse what a target cannot run or measure, by the key that asks for it.

    Raises:
        StudyFileError: it lacks a choice or a metric.
    """
    for kind in KNOB_KINDS.values():
        is_own = spec.space.preset == "none" or kind.key in spec.space.model_fields_set
        if is_own:  # a preset offers what the target takes
            _check_choices(spec, target, kind)
    grids = spec.with_activations(RUNTIMES[target.runtime].activations).quantization.scheme().activations
    if RUNTIMES[target.runtime].symmetric and grids != "symmetric":
        problem = f"must be symmetric: target {target.name} runs on {target.runtime}, which takes no other grids"
        raise StudyFileError(spec.file, "quantization.activations", problem)
    _check_metrics(spec, target)
    _check_batches(spec)


def taken_choices(target: Target) -> dict[str, Collection[Choice]]:
    """Key of a space -> the choices that a target takes, of those that its card lists or its runtime needs something for."""
    listed: dict[str, Collection[Choice]] = {key: getattr(target, key) for key in keys_of_targets()}
    for kind in KNOB_KINDS.values():
        if kind.needs:
            offered = {choice for preset in PRESETS.values() for choice in preset.space.get(kind.key, ())}
            listed[kind.key] = [choice for choice in offered if lacking(target, kind, choice) is None]
    return listed


def lacking(target: Target, kind: KnobKind, choice: Choice) -> Need | None:
    """What a choice needs that the target's runtime does not do; None where it does all."""
    need = kind.needs.get(choice)
    return None if need is None or getattr(RUNTIMES[target.runtime], need.capability) else need


def resolved(spec: StudySpec, workload: Workload, target: Target) -> StudySpec:
    """The study with its preset written out for the workload, which has a place for everything that is then searched.

    Raises:
        StudyFileError: the latency table is of another model, or a criterion, distiller or teacher is unknown or does not fit.
    """
    model, example = workload.model, workload.example_input
    check_direction(spec, workload)
    check_shapes(spec, workload, target)
    if target.predict and target.latency_table is not None and target.latency_table.model != layers_of(model):
        raise StudyFileError(spec.file, "target", f"the latency table of {target.name} was fitted to another model")
    spec = spec.with_preset(family_of(model, example), taken_choices(target))
    spec = spec.with_activations(RUNTIMES[target.runtime].activations)
    recovery = spec.recovery.settings()
    with naming(spec, "recovery.distiller"):
        tapped_modules(model, example, get_distiller(recovery.distiller, recovery.temperature).tap)
    with naming(spec, "recovery.teachers"):
        Teacher(workload, recovery.teachers, None)
    for index, name in enumerate(spec.space.choices()["criterion"]):
        with naming(spec, f"space.criterion.{index}"):
            get_criterion(str(name))
    return spec


def in_epochs(spec: StudySpec, workload: Workload) -> StudySpec:
    """The study with recoveries measured in epochs of the workload's training data, where its file has them in steps."""
    return spec.in_epochs(steps_of_an_epoch(workload, spec.recovery.settings(), spec.recovery.batch_size))


def check_direction(spec: StudySpec, workload: Workload) -> None:
    """Refuse to maximise the accuracy where that is a metric of which less is better.

    Raises:
        StudyFileError: it is an objective.
    """
    if "accuracy" in spec.objectives and not is_higher_better(workload.metric):
        problem = "accuracy is a metric here of which less is better; accuracy_drop is how much of it is lost"
        raise StudyFileError(spec.file, f"objectives.{spec.objectives.index('accuracy')}", problem)


def check_shapes(spec: StudySpec, workload: Workload, target: Target) -> None:
    """Refuse shapes that inputs cannot have.

    Raises:
        StudyFileError: the workload or the runtime has no such dynamic axes.
    """
    if not target.shapes:
        return
    problem = shapes_problem(target.shapes, [*sizes_of(workload.dynamic_axes, workload.example_input)])
    if not RUNTIMES[target.runtime].dynamic_axes:
        problem = "", f"needs dynamic axes, and runtime {target.runtime} has none"
    if problem is not None:
        where, words = problem
        key, said = (f"shapes{where}", words) if spec.shapes else ("target", f"its card's shapes{where}: {words}")
        raise StudyFileError(spec.file, key, said)


def float_types(target: Target, runtime: Runtime) -> Mapping[FloatPrecision, str]:
    """`computed_types` of a target on this machine; where latency is only predicted, its table knows what it was fitted to."""
    if target.predict:
        return {precision: precision for precision in FLOAT_PRECISIONS}
    return computed_types(runtime, target)


def check_floats(spec: StudySpec, target: Target, types: Mapping[FloatPrecision, str]) -> None:
    """Refuse float precisions that a target does not compute in, which are `types`.

    Raises:
        StudyFileError: one is offered.
    """
    for index, precision in enumerate(spec.space.offered(FLOATS.key)):
        if precision not in types:
            problem = f"target {target.name} computes floats in {', '.join(types)}, not in {precision}"
            raise StudyFileError(spec.file, f"space.{FLOATS.key}.{index}", problem)


def distinct_choices(spec: StudySpec, types: Mapping[FloatPrecision, str]) -> SpaceChoices:
    """What a study offers, of float precisions that are the same on the target only the first."""
    choices = spec.space.choices()
    different: dict[str, Choice] = {}
    for precision in choices[FLOATS.key]:
        different.setdefault(types[precision], precision)  # pyright: ignore[reportArgumentType]  # it was checked
    return choices.narrowed(FLOATS.key, tuple(different.values()))


def check_space(spec: StudySpec, space: Space) -> None:
    """Refuse a space that holds nothing but the uncompressed model.

    Raises:
        StudyFileError: it has no knob.
    """
    if not space.knobs:
        problem = "nothing is left to choose: every layer is kept back or cannot be pruned"
        raise StudyFileError(spec.file, "space", problem)


def _runtime_here(target: Target) -> Runtime:
    try:
        return get_runtime(target.runtime)
    except TargetError as error:
        if not (target.remote or target.predict):
            raise
        raise TargetError(f"{error}; elsewhere is only timed: candidates are lowered and scored here") from error


def _check_metrics(spec: StudySpec, target: Target) -> None:
    for key, metrics in (("objectives", spec.objectives), ("constraints", [c.metric for c in spec.constraints])):
        for index, metric in enumerate(metrics):
            try:
                require_available(metric, target)
            except EvaluationError as error:
                raise StudyFileError(spec.file, f"{key}.{index}", f"{metric} cannot be measured: {error}") from error


def _check_batches(spec: StudySpec) -> None:
    gpus, batch_size = spec.compute.gpus, spec.recovery.batch_size
    if gpus > 1 and batch_size % gpus:
        problem = f"{gpus:g} GPUs cannot share recovery.batch_size {batch_size} equally"
        raise StudyFileError(spec.file, "compute.gpus", problem)


def _check_choices(spec: StudySpec, target: Target, kind: KnobKind) -> None:
    for index, choice in enumerate(spec.space.offered(kind.key)):
        if need := lacking(target, kind, choice):
            problem = f"target {target.name} runs on {target.runtime}, which {need.lacking}"
            raise StudyFileError(spec.file, f"space.{kind.key}", problem)
        allowed = getattr(target, kind.key) if kind.is_listed_by_targets else (choice,)
        if choice not in allowed:
            problem = f"target {target.name} takes {', '.join(map(str, allowed))}, not {choice}"
            raise StudyFileError(spec.file, f"space.{kind.key}.{index}", problem)
