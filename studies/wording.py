"""Measurements, policies and moments in words, for the terminal and for cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from rich.filesize import decimal

from ..core.measurement import Measurement
from ..core.metrics import METRICS, OF_QUALITY, metric_of
from ..core.texts import epochs_text
from ..spaces.knobs.kind import Knob, LayerKind
from ..spaces.knobs.registry import KNOB_KINDS
from ..spaces.policies.float_precision import DEFAULT, FLOAT32, FLOAT_PRECISIONS
from ..spaces.policies.policy import Policy
from ..spaces.policies.resolved import as_layer_policies, is_within
from .files.executed import precision_of, ran_in
from .store.records import Violation

Row = tuple[str, ...]

_COUNTED = ("bytes", "FLOPs", "BOPs", "count")
_SIGNED_UNITS = (*_COUNTED, "ratio", "fraction", "score")
"""Units that a letter or sign of `short_text` stands for, or that go without saying; it leaves out all others."""

LEAST_OF_UNIT = 0.9995
"""Of a factor, from which a number has it: three digits of one just below are those of the factor itself."""

_FACTORS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


FLOAT_WORDS = {**dict(zip(FLOAT_PRECISIONS, FLOAT_PRECISIONS, strict=True)), DEFAULT: "the runtime's default precision"}
"""Float precision -> what reports call it."""

LAYER_COLUMNS = ("weight_bits", "activation_bits", "sparsity")
"""Kinds of knobs that a layer's row has a column for."""


def full_text(value: float, unit: str) -> str:
    """A number in its own unit, the unit left out: counts to the last digit, others to four."""
    if unit in _COUNTED:
        return f"{value:,.0f}"
    if unit in ("fraction", "nats", "score", "correlation"):
        return f"{round(value, 4) + 0.0:.4f}"  # + 0.0: never "-0.0000"
    return f"{value:#.4g}".removesuffix(".")


def short_text(value: float, unit: str) -> str:
    """A number for a narrow column: bytes as kB, counts as k, M or G, ratios with an x."""
    if unit == "bytes":
        return decimal(round(value))
    if unit in _COUNTED:
        factor, letter = next(
            ((factor, letter) for factor, letter in _FACTORS if value >= LEAST_OF_UNIT * factor), (1, "")
        )
        return f"{value / factor:.3g}{letter}"
    return f"{value:.2f}x" if unit == "ratio" else full_text(value, unit)


def count_text(count: int, noun: str) -> str:
    """ "1 point", "2 points"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def bounds_text(measurement: Measurement) -> tuple[str, str]:
    """Low and high end of the interval in the measurement's unit; both empty where the number is exact."""
    if measurement.low == measurement.high:
        return "", ""
    return full_text(measurement.low, measurement.unit), full_text(measurement.high, measurement.unit)


def spread_text(measurement: Measurement) -> str:
    """ "±" and the wider half of the interval; empty where the number is exact."""
    half = max(measurement.high - measurement.value, measurement.value - measurement.low)
    if not half:
        return ""
    return f"±{half:.2g}" if measurement.unit in ("ms", "ratio") else f"±{short_text(half, measurement.unit)}"


def figure_text(measurement: Measurement, *, spread: bool = True) -> str:
    """What was measured and how much, as in "latency 0.512 ms" or "accuracy drop 0.0010 ±0.0040"."""
    unit = measurement.unit
    name = measurement.name.removesuffix(f"_{unit.lower()}").replace("_", " ")
    amount = short_text(measurement.value, unit)
    parts = [name, amount, spread_text(measurement) if spread else "", "" if unit in _SIGNED_UNITS else unit]
    return " ".join(filter(None, parts))


def clock_text(seconds: float) -> str:
    """Minutes and seconds as a clock shows them, "1:05"; with hours from the first on, "2:00:07"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def excess_text(violation: Violation) -> str:
    """How far beyond a constraint, or within it, in the unit of its metric; of accuracies, whose unit differs, only the number."""
    unit, excess = METRICS[violation.metric].unit, abs(violation.excess)
    amount = f"{excess:.2g}" if violation.metric in OF_QUALITY and 0 < excess < 1e-3 else short_text(excess, unit)
    return amount if unit in _SIGNED_UNITS else f"{amount} {unit}"


def predicted_text(measurements: Iterable[Measurement]) -> str | None:
    """One sentence on figures that were predicted; None where all were measured."""
    predicted = [m for m in measurements if m.is_predicted]
    if not predicted:
        return None
    names = dict.fromkeys(m.name for m in predicted)
    return f"Predicted: {', '.join(names)}. They were {predicted[0].method}, not measured on the target."


def in_order(measurements: Mapping[str, Measurement]) -> list[Measurement]:
    """Measurements as `METRICS` lists them, after each those of the same metric at single shapes."""
    own_first = sorted(measurements, key=lambda name: name not in METRICS)  # the sort is stable
    return [measurements[name] for metric in METRICS for name in own_first if metric_of(name) == metric]


def layer_rows(policy: Policy, executed: Mapping[str, str] | None = None) -> list[Row]:
    """(layer, weight bits, activation bits, sparsity and operator) of every layer that the policy changes and does not remove.

    With the precisions it `executed` in, what each layer ran in comes last.
    """
    policy = as_layer_policies(policy)
    rows = {
        name: (name, *(_decided(policy, name, column) for column in LAYER_COLUMNS))
        for name in policy.layers
        if not is_within(name, policy.removed_blocks)
    }
    if executed is None:
        return list(rows.values())
    return [(*row, ran_in(policy.layers[name], precision_of(name, executed))) for name, row in rows.items()]


def channel_rows(policy: Policy) -> list[Row]:
    """(channel group, fraction removed, fraction kept after width too) of every group with a sparsity of its own."""
    return [(group, f"{removed:g}", f"{policy.kept_fraction(group):g}") for group, removed in policy.channels.items()]


def width_text(policy: Policy) -> str:
    """The student's width in words, how it was pruned where that is not the usual way, and its floats where they are not float32."""
    width = "full" if policy.width == 1 else f"{policy.width:g} of every channel group kept"
    settings = [f"{name} {value}" for name, value in policy.pruning.changes().items()]
    pruned = [f"pruned with {', '.join(settings)}"] if settings else []
    removed = [f"without {', '.join(policy.removed_blocks)}"] if policy.removed_blocks else []
    others = as_layer_policies(policy).module_choices  # those that no table of layers has a column for
    extended = [
        f"{kind} {choice}" + (f" of {subject}" if subject else "")
        for kind, decided in {**policy.extensions, **others}.items()
        for subject, choice in decided.items()
    ]
    floats = [] if policy.float_precision == FLOAT32 else [f"floats in {FLOAT_WORDS[policy.float_precision]}"]
    return "; ".join([width, *removed, *pruned, *extended, *floats])


def recovery_text(policy: Policy) -> str:
    """The fine-tuning in words."""
    recovery = policy.recovery
    if not recovery.changes_weights:
        return "none"
    if not recovery.epochs:
        return f"{', '.join(recovery.steps)}, without training"
    return (
        f"{epochs_text(recovery.epochs)} at learning rate {recovery.learning_rate:g}, "
        f"distilled at temperature {recovery.temperature:g} with alpha {recovery.alpha:g}"
    )


def moment(when: datetime) -> str:
    """A moment on this machine's clock."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _decided(policy: Policy, layer: str, column: str) -> str:
    """What a column of a layer's row shows: the choice of the kind it is named after, and others that are not neutral."""
    shown = []
    for kind in KNOB_KINDS.values():
        own = kind.name == column
        if own or (isinstance(kind, LayerKind) and kind.name not in LAYER_COLUMNS and kind.column == column):
            choice = kind.read(policy, Knob("", kind.name, (), (layer,)))
            if own or choice != kind.neutral:
                shown.append(f"{choice:g}" if isinstance(choice, float) else str(choice))
    return ", ".join(shown)
