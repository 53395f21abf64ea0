"""An inspection as a value, and as tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ...core.metrics import METRICS
from ..analysis.roofline import Limits
from ..terminal import Shown, facts, rows_table, words
from ..wording import count_text, short_text
from .compression_bounds import Gain


@dataclass(frozen=True)
class LayerReport:
    """A layer, and the techniques that do not apply to it.

    Attributes:
        name, kind, weights, macs: as in `spaces.models.layers.Layer`.
        share: of the model's multiply-adds.
        group: channel group that makes its outputs, or "".
        refused: technique -> why it does not apply to this layer.
    """

    name: str
    kind: str
    weights: int
    macs: int
    share: float
    group: str
    refused: Mapping[str, str]


@dataclass(frozen=True)
class GroupReport:
    """A channel group, or heads; `multiple` is what kept ones are rounded to a multiple of, the rest as in `ChannelGroup`."""

    name: str
    channels: int
    layers: tuple[str, ...]
    multiple: int
    unit: str


@dataclass(frozen=True)
class Inspection(Shown):
    """The result of an inspection.

    Attributes:
        layers: those a policy may touch; `skipped` maps every other module that owns a matrix or kernel to the reason.
        groups: channel groups and heads that can be pruned; `unprunable` maps the others to the reason.
        blocks: path of each block that may be removed whole -> its influence, see `spaces.models.blocks.block_influence`;
            `fixed_blocks` maps the others to the reason.
        family: whose preset a study without a space takes.
        choices: key of a study's space -> what it offers, or the preset does; those that are off left out.
        float_only: why no layer can be quantized on any target, or None where they can; no bits are searched then.
        bits: weight and activation bits of the target -> what they are good for there, and "floats" -> the precisions it computes those in;
            empty without a target.
        gains: upper bounds of what each technique alone and all together can gain, from counts.
        limits: how fast the model can be at best on the target; None where its card has no measurements.
        remarks: what was changed or found of the workload, each a line for its owner.
    """

    workload: str
    family: str
    parameters: int
    macs: int
    layers: Sequence[LayerReport]
    skipped: Mapping[str, str]
    groups: Sequence[GroupReport]
    unprunable: Mapping[str, str]
    blocks: Mapping[str, float]
    fixed_blocks: Mapping[str, str]
    choices: Mapping[str, Sequence[Any]]
    target: str | None
    float_only: str | None
    bits: Mapping[str, str]
    gains: Sequence[Gain]
    limits: Limits | None = None
    remarks: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        return inspection_tables(self)


def inspection_tables(inspection: Inspection) -> RenderableType:
    """All of an `Inspection`, the most important part last."""
    return Group(
        *_part("Layers", _layers(inspection.layers)),
        *_part("Weights no policy may touch", _reasons(inspection.skipped)),
        *_part("Channel groups", _groups(inspection.groups)),
        *_part("Groups that cannot be pruned", _reasons(inspection.unprunable)),
        *_part(
            "Blocks that may be removed whole, those of least influence first by `depth`", _blocks(inspection.blocks)
        ),
        *_part("Blocks that cannot be removed", _reasons(inspection.fixed_blocks)),
        *_part("What is searched", rows_table(("key", "choices"), _choices(inspection.choices))),
        *_part(f"Bits on {inspection.target}", rows_table(("bits", "what they are good for"), inspection.bits.items())),
        *_part("Upper bound of gain", _gains(inspection)),
        *_part(f"Least time on {inspection.target}", _least_times(inspection.limits)),
        words(f"\n{inspection.workload}", "bold"),
        facts(_facts(inspection)),
    )


def _part(title: str, table: RenderableType) -> Iterable[RenderableType]:
    if getattr(table, "row_count", 1):
        yield Text(f"\n{title}", style="bold")
        yield table


def _layers(layers: Iterable[LayerReport]) -> RenderableType:
    header = ("layer", "kind", "weights>", "FLOPs>", "share>", "channel group", "not for it")
    rows = (
        (
            layer.name,
            layer.kind,
            short_text(layer.weights, "count"),
            short_text(layer.macs, "FLOPs"),
            f"{layer.share:.1%}",
            layer.group,
            ", ".join(layer.refused),
        )
        for layer in layers
    )
    return rows_table(header, rows)


def _groups(groups: Iterable[GroupReport]) -> RenderableType:
    header = ("group", "channels>", "unit", "kept in multiples of>", "layers that lose them")
    rows = ((g.name, str(g.channels), g.unit, str(g.multiple), ", ".join(g.layers)) for g in groups)
    return rows_table(header, rows)


def _blocks(influence: Mapping[str, float]) -> RenderableType:
    return rows_table(("block", "influence>"), ((name, f"{share:.3f}") for name, share in influence.items()))


def _reasons(reasons: Mapping[str, str]) -> RenderableType:
    """One row for all names that differ by numbers alone, such as those of a network's repeated blocks, and have one reason."""
    similar: dict[tuple[str, str], list[str]] = {}
    for name, reason in reasons.items():
        similar.setdefault((re.sub(r"\d+", "*", name), reason), []).append(name)
    rows = ((f"{p} ({len(names)})" if len(names) > 1 else names[0], reason) for (p, reason), names in similar.items())
    return rows_table(("name", "why not"), rows)


def _choices(choices: Mapping[str, Sequence[object]]) -> Iterable[tuple[str, str]]:
    return ((key, ", ".join(map(str, offered))) for key, offered in choices.items())


def _gains(inspection: Inspection) -> RenderableType:
    header = ("technique", "quantity", "now>", "at its least>", "by", "how")
    rows = []
    for gain in inspection.gains:
        unit = METRICS[gain.metric].unit
        before, after = short_text(gain.before, unit), short_text(gain.after, unit)
        ratio = f"{gain.before / max(1, gain.after):.2f}x"
        rows.append((gain.technique, gain.metric, before, after, ratio, gain.how))
    return rows_table(header, rows)


def _least_times(limits: Limits | None) -> RenderableType:
    header = ("operations", "arithmetic us>", "memory us>", "dispatch us>", "bound by")
    bounds = limits.now.bounds if limits is not None else ()
    rows = ((b.name, *(f"{us:.2f}" for us in (b.arithmetic_us, b.memory_us, b.dispatch_us)), b.limit) for b in bounds)
    return rows_table(header, rows)


def _facts(inspection: Inspection) -> Iterable[tuple[str, str]]:
    yield (
        "size",
        f"{short_text(inspection.parameters, 'count')} parameters, {short_text(inspection.macs, 'FLOPs')} FLOPs",
    )
    yield "family", f"{inspection.family}: what a study without a space searches, see docs/guide/families.md"
    yield "layers", count_text(len(inspection.layers), "layer")
    yield "groups", f"{len(inspection.groups)} can be pruned, {len(inspection.unprunable)} cannot"
    if inspection.float_only:
        yield "bits", f"none below 32: {inspection.float_only}"
    refused = {f"{name}: {why}" for layer in inspection.layers for name, why in layer.refused.items()}
    for sentence in sorted(refused):
        yield "where not", sentence
    if inspection.limits is not None:
        yield "limits", f"{inspection.limits}; see docs/explanation/measuring.md"
    elif inspection.target:
        yield "limits", f"unknown: `slimfront profile {inspection.target}` measures what bounds a model there"
    for remark in inspection.remarks:
        yield "remark", remark
    yield "note", "Bounds are of counts, at the ends of what is searched; neither time nor accuracy was looked at."
