"""What a search could do to a workload, and what it could not: layers, channel groups, each knob's reach and its upper bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..compression.batches import input_batches
from ..compression.prune import CALIBRATION_BATCH, pruned_copy
from ..hardware_profiles.target import Target, load_target
from ..spaces.blocks import block_influence, find_removable_blocks
from ..spaces.channel_groups import ChannelGroup, find_channel_groups
from ..spaces.families import family_of
from ..spaces.layers import Layer, find_layers, macs_by_module, why_untouched
from ..spaces.operators import Operator
from ..spaces.policy import FULL_PRECISION, Policy
from ..workloads.load import TORCHVISION, load_workload
from ..workloads.workload import Workload
from .kernel_answers import CONTAINER_BITS, bits_on
from .spec import StudySpec, load_study, shipped_studies

SHARE = 0.5
"""Of every group's channels: what the bound on structural gain removes."""

OPERATORS = ("separable", "groups=4", "rank=0.25")
FEWEST_SAMPLES = 20
"""Random images an inspection has made; the least `workloads.torchvision_data.DataOptions` takes."""


@dataclass(frozen=True)
class LayerReport:
    """A layer and what may stand in its way.

    Attributes:
        name, kind, weights, macs: as in `spaces.layers.Layer`.
        share: of the model's multiply-adds.
        group: channel group that makes its outputs, or "".
        refused: technique -> why it is none for this layer.
    """

    name: str
    kind: str
    weights: int
    macs: int
    share: float
    group: str
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Gain:
    """What one technique can make of a quantity.

    Attributes:
        metric: a key of `METRICS`.
        before, after: of the uncompressed model, and with the technique everywhere it can go.
        how: the technique in words.
    """

    metric: str
    before: float
    after: float
    how: str


@dataclass(frozen=True)
class Inspection:
    """All that is known of a workload before a search.

    Attributes:
        layers: those a policy may touch; `skipped` maps every other module that owns a matrix or kernel to the reason.
        groups: channel groups and heads that can be pruned; `unprunable` maps the others to the reason.
        blocks: path of each block that may be removed whole -> its influence, see `spaces.blocks.block_influence`.
        family: whose preset a study without a space takes.
        bits: weight and activation bits of the target -> what they are good for there; empty without a target.
        gains: upper bounds of what one technique alone can gain, from counts.
    """

    workload: str
    family: str
    parameters: int
    macs: int
    layers: Sequence[LayerReport]
    skipped: Mapping[str, str]
    groups: Sequence[ChannelGroup]
    unprunable: Mapping[str, str]
    blocks: Mapping[str, float]
    target: str | None
    bits: Mapping[str, str]
    gains: Sequence[Gain]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self)


def inspect_reference(reference: str, target: str | None = None) -> Inspection:
    """Inspect a study file's workload, or a workload by its name.

    Args:
        reference: a study file, a shipped study, or what `load_workload` takes.
        target: card to judge bits by; a study's own by default.

    Raises:
        UserError: neither a study nor a workload, or the target cannot be had.
    """
    spec = _study(reference)
    base = spec.base_folder if spec else Path.cwd()
    name, options = (spec.workload, spec.workload_options) if spec else (reference, {})
    wanted = target or (spec.target if spec else None)
    card = load_target(wanted, Path.cwd() if target else base) if wanted else None
    return inspect_workload(load_workload(name, _little_data(name, options), base), card)


def inspect_workload(workload: Workload, target: Target | None = None) -> Inspection:
    """Inspect a loaded workload."""
    model, example = workload.model.eval(), workload.example_input
    layers = find_layers(model, example)
    macs = macs_by_module(model, example)[""]
    groups, unprunable = find_channel_groups(model, example)
    makers = {layer: group.name for group in groups for layer in group.layers}
    batches = (batch.to(example.device) for batch in input_batches(workload.calibration, CALIBRATION_BATCH))
    return Inspection(
        workload=workload.name,
        family=family_of(model, example),
        parameters=_parameters(model),
        macs=macs,
        layers=[_layer(layer, macs, makers.get(layer.name, "")) for layer in layers],
        skipped=why_untouched(model, example),
        groups=groups,
        unprunable=unprunable,
        blocks=block_influence(model, batches, find_removable_blocks(model, example)),
        target=target.name if target else None,
        bits=bits_on(workload, target) if target else {},
        gains=_gains(workload, macs, layers, groups, target),
    )


def _little_data(workload: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`options` with as few random images as there may be, where a model of torchvision has no other data: it would label
    them all, and only a few are looked at."""
    if not workload.startswith(TORCHVISION) or "data" in options:
        return options
    return {**options, "data": {"name": "random", "samples": FEWEST_SAMPLES}}


def _study(reference: str) -> StudySpec | None:
    is_study = reference in shipped_studies() or Path(reference).suffix in (".yaml", ".yml")
    return load_study(reference) if is_study else None


def _layer(layer: Layer, macs: int, group: str) -> LayerReport:
    refused = {} if layer.sparsifiable_2_4 else {"2:4": "its input dimension is no multiple of 4"}
    for choice in OPERATORS:
        if problem := Operator.parse(choice).why_not(layer.shape, layer.groups):
            refused[choice] = problem
    return LayerReport(layer.name, layer.kind, layer.weights, layer.macs, layer.macs / max(1, macs), group, refused)


def _gains(
    workload: Workload, macs: int, layers: Sequence[Layer], groups: Sequence[ChannelGroup], target: Target | None
) -> list[Gain]:
    """Bounds from counts: nothing here was timed, and time seldom falls as far as counts do."""
    model, example = workload.model, workload.example_input
    parameters = _parameters(model)
    slim = pruned_copy(model, example, Policy(width=1 - SHARE), groups)
    half = f"{SHARE:.0%} of every group's channels removed"
    weights = sum(layer.weights for layer in layers)
    least = min(target.weight_bits) if target else CONTAINER_BITS
    packed = (parameters - weights) * FULL_PRECISION / 8 + weights * least / 8
    return [
        Gain("parameters", parameters, _parameters(slim), half),
        Gain("flops", macs, macs_by_module(slim, example)[""], half),
        Gain("packed_bytes", parameters * 4, packed, f"every layer's weights at {least} bits"),
    ]


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
