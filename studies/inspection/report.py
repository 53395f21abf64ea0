"""An inspection as tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ...core.metrics import METRICS
from ...spaces.models.channel_groups import ChannelGroup
from ..terminal import facts, rows_table, words
from ..wording import count_text, short_text
from .inspect import Inspection, LayerReport


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


def _groups(groups: Iterable[ChannelGroup]) -> RenderableType:
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
    for remark in inspection.remarks:
        yield "remark", remark
    yield "note", "Bounds are of counts, at the ends of what is searched; neither time nor accuracy was looked at."
