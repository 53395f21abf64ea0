"""What a search can change in a workload, and what it cannot: layers, channel groups, and bounds on what each technique gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compression.batches import CALIBRATION_BATCH, input_batches
from ...compression.pruning.proof import proven_groups
from ...core.batch import device_of
from ...core.console import Doing, unsaid
from ...core.errors import WorkloadError
from ...core.machine.memory import tidy
from ...core.validation import suggestion
from ...hardware_profiles.cards.target import Target, load_target
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...spaces.choices import SpaceChoices
from ...spaces.families import family_of
from ...spaces.models.blocks import block_influence, examine_blocks, least_influential_first
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import Layer, find_every_layer, macs_by_module
from ...spaces.policies.operators import DENSE, Operator
from ...spaces.policies.policy import Recovery
from ...spaces.policies.quantization_scheme import Scheme
from ...spaces.presets import Family, preset_space
from ...spaces.space import Space
from ...workloads.contract import held
from ...workloads.load import OWN_FORMS, TORCHVISION, builtin_workloads, load_workload, working_in
from ...workloads.workload import Workload
from ..study_file.load import shipped_studies, study_named
from ..study_file.spec import StudySpec
from .compression_bounds import gains
from .float_artifact import require_artifact
from .limits import limits_on
from .other_sizes import size_remarks
from .precision_probe import bits_on, floats_on, why_float_only
from .report import GroupReport, Inspection, LayerReport
from .study_checks import check_space, check_target, in_epochs, naming, resolved, taken_choices, target_of
from .untouched import why_untouched

LOADING = "loading the workload, and reading its data"
KEPT_BACK = "space.keep holds it back"
AS_A_WHOLE = {"layer knobs": "its matrices are one decision, `recurrent_weights`"}
OF_ITS_OWN = {"layer knobs": "its table is a decision of its own, `embedding_bits`"}
OPERATORS = ("separable", "groups=4", "rank=0.25")
FEWEST_SAMPLES = 20
"""The number of random images that an inspection uses, the fewest that `workloads.torchvision.data.DataOptions` accepts."""


def inspect_reference(reference: str, target: str | None = None, doing: Doing = unsaid) -> Inspection:
    """Inspect a study file's workload, or a workload by its name.

    Args:
        reference: a study file, a shipped study, or what `load_workload` takes.
        target: card to judge bits by; a study's own by default.
        doing: is called with what begins.

    Raises:
        UserError: neither a study nor a workload, or the target cannot be had.
    """
    spec, known = study_named(reference), {*shipped_studies(), *builtin_workloads()}
    if spec is None and ":" not in reference and reference not in known:
        wanted = f"a study file, the name of a study or workload, {OWN_FORMS}"
        raise WorkloadError(f"{reference!r} is none of {wanted}; {suggestion(reference, known)}")
    card = load_target(target, Path.cwd()) if target else None
    if spec is not None:
        return _inspect_study(spec, card, doing)
    doing(LOADING)
    with working_in(Path.cwd()):
        workload = load_workload(reference, _little_data(reference, {}), Path.cwd())
        return inspect_workload(held(workload), card, doing=doing)


def _inspect_study(spec: StudySpec, card: Target | None, doing: Doing) -> Inspection:
    """Inspect what a study searches; what a search of it would refuse is refused."""
    with working_in(spec.base_folder):
        if card is None:
            card, _ = target_of(spec)
        else:
            check_target(spec, card)
        doing(LOADING)
        with naming(spec, "workload"):
            options = _little_data(spec.workload, spec.workload_options)
            workload = held(load_workload(spec.workload, options, spec.base_folder))
        return inspect_workload(workload, card, resolved(in_epochs(spec, workload), workload, card), doing)


def inspect_workload(
    workload: Workload, target: Target | None = None, spec: StudySpec | None = None, doing: Doing = unsaid
) -> Inspection:
    """Inspect a loaded workload, in the space of a study or else of its family's preset."""
    doing = _tidying(doing)
    model, example = workload.model.eval(), workload.example_input
    remarks = (*workload.remarks, *_artifact_remarks(workload, target, doing))  # first: nothing lowers without it
    family, found = family_of(model, example), _Found.of(workload, doing)
    doing("capturing the model for quantization")
    float_only = why_float_only(workload, found.layers)
    choices, scheme = _choices(family, target, spec)
    if spec is not None:
        check_space(spec, found.space(choices, scheme))
    if float_only:
        choices = choices.without_quantization()
    space = found.space(choices, scheme)
    macs = macs_by_module(model, example)[""]
    doing("asking the target what bit-widths run in, and counting what techniques can save")
    return Inspection(
        workload=workload.name,
        family=family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs,
        layers=found.layer_reports(space, macs, _operators(choices) if spec else OPERATORS),
        skipped=why_untouched(model, example),
        groups=_groups(space),
        unprunable={**found.unprunable, **found.groups_kept_back(space)},
        blocks={name: found.influence[name] for name in space.blocks},
        fixed_blocks={**found.fixed_blocks, **found.blocks_kept_back(space)},
        choices=_searched(choices),
        target=target.name if target else None,
        float_only=float_only,
        bits=_bits_on(workload, found.layers if not float_only else [], target),
        gains=gains(model, example, space),
        limits=limits_on(model, example, found.layers, space.groups, target) if target else None,
        remarks=remarks,
    )


def _artifact_remarks(workload: Workload, target: Target | None, doing: Doing) -> list[str]:
    """What is to be known of the uncompressed model's artifact; a model that has none on the target is refused."""
    if target is None:
        return []
    doing("running the uncompressed model on the target's runtime")
    remarks = size_remarks(workload, target)  # first: what stands in the way of other sizes is said by the axes' names
    require_artifact(workload, target)
    return remarks


def _tidying(doing: Doing) -> Doing:
    """As `doing`, and give back what the part before has freed."""

    def announce(what: str) -> None:
        tidy()
        doing(what)

    return announce


def _bits_on(workload: Workload, layers: Sequence[Layer], target: Target | None) -> dict[str, str]:
    """What bits, and types of floats, are good for on a target; of bits nothing where no layer is quantized."""
    if target is None:
        return {}
    return {**(bits_on(workload, layers, target) if layers else {}), **floats_on(target)}


@dataclass(frozen=True)
class _Found:
    """The parts of a workload's model that policies can change, whatever a study offers; see `Inspection`."""

    layers: Sequence[Layer]
    groups: Sequence[ChannelGroup]
    unprunable: Mapping[str, str]
    blocks: Sequence[str]
    fixed_blocks: Mapping[str, str]
    influence: Mapping[str, float]

    @classmethod
    def of(cls, workload: Workload, doing: Doing) -> _Found:
        model, example = workload.model, workload.example_input
        doing("finding the model's layers, and counting what each computes")
        layers = find_every_layer(model, example)
        doing("finding channels that can be removed together, and proving that nothing else changes")
        groups, unprunable = proven_groups(workload)
        doing("finding blocks that can be removed, and proving it")
        removable, fixed = examine_blocks(model, example)
        batches = input_batches(workload.calibration, CALIBRATION_BATCH, device_of(example))
        influence = block_influence(model, batches, removable) if removable else {}
        return cls(layers, groups, unprunable, removable, fixed, influence)

    def space(self, choices: SpaceChoices, scheme: Scheme) -> Space:
        order = least_influential_first(dict(self.influence))
        return Space(self.layers, self.groups, choices, Recovery(1), self.blocks, scheme, order)

    def layer_reports(self, space: Space, macs: int, operators: Sequence[str]) -> list[LayerReport]:
        makers = {layer: group.name for group in self.groups for layer in group.layers}
        kept_back = {layer.name for layer in self.layers} - {layer.name for layer in space.layers}
        return [
            _layer(each, macs, makers.get(each.name, ""), operators, each.name in kept_back) for each in self.layers
        ]

    def groups_kept_back(self, space: Space) -> dict[str, str]:
        multiple = space.channel_multiple
        return {
            group.name: KEPT_BACK if group.can_lose(multiple) else group.why_whole(multiple)
            for group in self.groups
            if group not in space.groups
        }

    def blocks_kept_back(self, space: Space) -> dict[str, str]:
        return {name: KEPT_BACK for name in self.blocks if name not in space.blocks}


def _choices(family: Family, target: Target | None, spec: StudySpec | None) -> tuple[SpaceChoices, Scheme]:
    """What a study offers, or the preset of a family, of the bits a target takes."""
    bits = taken_choices(target) if target else {}
    if spec is None:
        return SpaceChoices(**preset_space(family, bits)), Scheme()
    if target is not None:
        spec = spec.with_activations(RUNTIMES[target.runtime].activations)
    return spec.with_preset(family, bits).space.choices(), spec.quantization.scheme()


def _operators(choices: SpaceChoices) -> list[str]:
    """The operators that a study offers in place of dense layers."""
    return [str(name) for name in choices["operators"] if name != DENSE]


def _searched(choices: SpaceChoices) -> dict[str, tuple[Any, ...]]:
    """Key of a space -> its choices, without those that are off."""
    searched: dict[str, tuple[Any, ...]] = {kind.key: choices[kind.key] for kind in choices.searched()}
    return {**searched, "keep": choices.keep} if choices.keep else searched


def _little_data(workload: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`options` with as few random images as there may be, where a model of torchvision has no other data: it would label
    all of them, and an inspection reads only a few."""
    if not workload.startswith(TORCHVISION) or "data" in options:
        return options
    return {**options, "data": {"name": "random", "samples": FEWEST_SAMPLES}}


def _groups(space: Space) -> list[GroupReport]:
    multiple = space.channel_multiple
    return [
        GroupReport(group.name, group.channels, group.layers, group.rounded_to(multiple), group.unit)
        for group in space.groups
    ]


def _layer(layer: Layer, macs: int, group: str, operators: Sequence[str], kept_back: bool) -> LayerReport:
    if not layer.is_product:
        refused = {"anything": KEPT_BACK} if kept_back else dict(AS_A_WHOLE if layer.is_recurrent else OF_ITS_OWN)
        return LayerReport(layer.name, layer.kind, layer.weights, layer.macs, layer.macs / max(1, macs), group, refused)
    refused = {} if layer.sparsifiable_2_4 else {"2:4": "its input dimension is not a multiple of 4"}
    for choice in operators:
        if problem := Operator.parse(choice).why_not(layer.shape, layer.groups):
            refused[choice] = problem
    if kept_back:
        refused = {"anything": KEPT_BACK}
    return LayerReport(layer.name, layer.kind, layer.weights, layer.macs, layer.macs / max(1, macs), group, refused)
