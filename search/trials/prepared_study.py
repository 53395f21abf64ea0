"""What a study asks, made concrete: its workload loaded, its target read, its space built. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...compression.batches import CALIBRATION_BATCH, input_batches
from ...compression.pruning.proof import proven_groups
from ...core.batch import device_of
from ...core.console import Doing, unsaid
from ...core.threads import usable_threads
from ...evaluators.evaluator import Context
from ...hardware_profiles.bench.timer import Timer
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.profiling.fingerprint import machine, versions
from ...hardware_profiles.runtimes.base import Artifact, Runtime, distinct
from ...spaces.choices import SpaceChoices
from ...spaces.knobs.quantization import FLOATS
from ...spaces.models.blocks import block_influence, find_removable_blocks, least_influential_first
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import Layer, find_every_layer
from ...spaces.policies.float_precision import DEFAULT, FLOAT32, FloatPrecision
from ...spaces.space import Space
from ...studies.inspection.other_sizes import size_remarks
from ...studies.inspection.study_checks import (
    check_floats,
    check_space,
    distinct_choices,
    float_types,
    in_epochs,
    naming,
    resolved,
    target_of,
)
from ...studies.study_file.spec import StudySpec
from ...workloads.contract import held
from ...workloads.placement import placed
from ...workloads.workload import Workload
from .baseline import bench_of
from .given_workload import loaded_workload, pickled_workload
from .shared_pickle import SharedPickle


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study ready to be searched; equal to itself alone.

    Attributes:
        written: the study as its file has it, its recoveries in epochs; `spec` has what its preset fills in.
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
    pickled_workload: SharedPickle | None = None

    @property
    def target(self) -> Target:
        """Where candidates run."""
        return self.context.target

    def bench(self, reference: Artifact) -> Timer:
        """A timer of this target, its reference the uncompressed model's artifact."""
        return bench_of(self.context, reference)

    def float_precisions(self) -> tuple[tuple[FloatPrecision, ...], str]:
        """The precisions in which the target computes a whole model's floats differently, its default first, and what that is.

        Raises:
            TargetError: the target is a node of the Ray cluster, and the cluster has none.
        """
        if self.target.predict:  # a latency table is fitted to the model in float32
            return (FLOAT32,), FLOAT32
        types = _float_types(self.spec, self.target, self.context.runtime)
        return distinct(types[DEFAULT], (each for each in types if each != DEFAULT)), types[DEFAULT]

    def settled(self, spec: StudySpec, precision: FloatPrecision) -> PreparedStudy:
        """This study with its space as the choice of its reference settles it.

        Args:
            precision: the reference's, which the policies that a search starts from have.

        Raises:
            UserError: the space does not fit the workload.
        """
        if precision == FLOAT32 and spec.to_json() == self.spec.to_json():
            return self
        types = _floats_searched(spec, self.target, self.context.runtime)
        choices = distinct_choices(spec, types)
        space = _built_space(spec, choices, self.context.workload, self.layers, self.groups, precision)
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


def prepare(
    spec: StudySpec,
    given: Workload | None = None,
    doing: Doing = unsaid,
    loading: AbstractContextManager[None] | None = None,
) -> PreparedStudy:
    """Load what `spec` names and build its space.

    Args:
        given: the workload itself, where it is an object of this program that `spec` cannot name.
        doing: is called with what begins.
        loading: a context for the user's own code, as a time limit; what follows tries much out, and takes any exception for an answer.

    Raises:
        UserError: the workload or the target cannot be had, or the space does not fit them.
    """
    target, runtime = target_of(spec)
    threads = usable_threads()
    torch.set_num_threads(threads)
    doing("loading the workload, and reading its data")
    with naming(spec, "workload"), loading or nullcontext():
        pickled = None if given is None else pickled_workload(given)
        loaded = loaded_workload(spec.workload, spec.workload_options, spec.base_folder, pickled, copied=True)
        workload = held(placed(loaded, spec.compute.device, spec.compute.data_workers))
        workload = replace(workload, remarks=(*workload.remarks, *size_remarks(workload, target)))
    model, example = workload.model.eval(), workload.example_input
    written = in_epochs(spec, workload)
    spec = resolved(written, workload, target)
    types = _floats_searched(spec, target, runtime)
    doing("finding the model's layers, and counting what each computes")
    layers = find_every_layer(model, example)
    doing("finding channels that can be removed together, and proving that nothing else changes")
    groups, unprunable = proven_groups(workload)
    doing("building the space")
    space = _built_space(spec, distinct_choices(spec, types), workload, layers, groups)
    limit_s = spec.budget.trial_timeout_s
    context = Context(workload, target, runtime, threads=threads, metrics=spec.metrics, scoring_limit_s=limit_s)
    return PreparedStudy(spec, written, context, layers, groups, unprunable, space, pickled)


def _floats_searched(spec: StudySpec, target: Target, runtime: Runtime) -> Mapping[FloatPrecision, str]:
    """The types that the float precisions a study offers are computed in on its target.

    Raises:
        StudyFileError: it offers one that the target does not compute in.
    """
    if FLOATS.is_off(spec.space.offered(FLOATS.key)):  # nobody need be asked
        return {FLOAT32: FLOAT32}
    types = _float_types(spec, target, runtime)
    check_floats(spec, target, types)
    return types


def _float_types(spec: StudySpec, target: Target, runtime: Runtime) -> Mapping[FloatPrecision, str]:
    """Float precision -> the type that the target computes it in, which for one elsewhere its node says."""
    if not target.remote:
        return float_types(target, runtime)
    from ..cluster.remote_bench import remote_float_types  # only here: importing ray takes a second

    with naming(spec, "target"):
        return remote_float_types(target)


def _built_space(
    spec: StudySpec,
    choices: SpaceChoices,
    workload: Workload,
    layers: Sequence[Layer],
    groups: Sequence[ChannelGroup],
    precision: FloatPrecision = FLOAT32,
) -> Space:
    model, example = workload.model, workload.example_input
    blocks = find_removable_blocks(model, example) if choices.decides_on("block", "ranking") else []
    ranking = _ranked(workload, blocks) if choices.decides_on("ranking") else ()
    scheme = spec.quantization.scheme()
    usual = {FLOATS.name: precision}
    space = Space(layers, groups, choices, spec.recovery.settings(), blocks, scheme, ranking, usual)
    check_space(spec, space)
    return space


def _ranked(workload: Workload, blocks: Sequence[str]) -> list[str]:
    batches = input_batches(workload.calibration, CALIBRATION_BATCH, device_of(workload.example_input))
    return least_influential_first(block_influence(workload.model, batches, blocks))
