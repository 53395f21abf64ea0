"""What bounds a model's latency on a measured machine: the roofline (Williams, Waterman, Patterson 2009), layer by layer.

An operation takes at least the time to compute its multiply-adds at the rate that its kind reaches, at least the time to move its numbers
at the memory's bandwidth, whichever is longer, and before that the time to be dispatched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...hardware_profiles.cards.device_card import DeviceCard
from ...hardware_profiles.cards.target import Target
from ...spaces.models.operations import OTHERS, Operation
from ...spaces.policies.layer_policy import BFLOAT16_BITS, FULL_PRECISION

Precision = Literal["float32", "16 bits", "8 bits"]
Limit = Literal["arithmetic", "memory", "dispatch"]

BITS: dict[Precision, int] = {"float32": FULL_PRECISION, "16 bits": BFLOAT16_BITS, "8 bits": 8}
"""Precision -> bits of weights and activations."""

LIMITS: dict[Limit, str] = {
    "arithmetic": "arithmetic",
    "memory": "moving numbers to and from memory",
    "dispatch": "dispatching operations, which none of these shortens,",
}
"""Limit -> its name in a sentence."""


@dataclass(frozen=True)
class Bound:
    """The least time of an operation in microseconds, by what takes it.

    Attributes:
        name: of the `Operation`.
    """

    name: str
    arithmetic_us: float
    memory_us: float
    dispatch_us: float

    @property
    def us(self) -> float:
        """Arithmetic and memory traffic overlap; dispatch comes before them."""
        return self.dispatch_us + max(self.arithmetic_us, self.memory_us)

    @property
    def limit(self) -> Limit:
        """What takes most of it."""
        times: dict[Limit, float] = {
            "arithmetic": self.arithmetic_us, "memory": self.memory_us, "dispatch": self.dispatch_us,
        }  # fmt: skip
        return max(times, key=lambda limit: times[limit])


@dataclass(frozen=True)
class Roofline:
    """The bounds of a model's operations at one precision.

    Attributes:
        call_us: of a run, whatever it runs.
    """

    precision: Precision
    bounds: Sequence[Bound]
    call_us: float

    @property
    def latency_ms(self) -> float:
        """Of one batch in each stream, at best."""
        return (self.call_us + sum(bound.us for bound in self.bounds)) / 1e3

    def shares(self) -> dict[Limit, float]:
        """What takes the time -> its share: of arithmetic and memory, which overlap, the longer one of each operation."""
        arithmetic = sum(b.arithmetic_us for b in self.bounds if b.arithmetic_us >= b.memory_us)
        memory = sum(b.memory_us for b in self.bounds if b.arithmetic_us < b.memory_us)
        dispatch = self.call_us + sum(b.dispatch_us for b in self.bounds)
        whole = self.latency_ms * 1e3
        return {"arithmetic": arithmetic / whole, "memory": memory / whole, "dispatch": dispatch / whole}


@dataclass(frozen=True)
class Limits:
    """How fast a model can be at best on a target.

    Attributes:
        now: of the model as it is, in float32 or 16 bits, whichever is faster at best.
        ahead: change -> roofline of the model after it.
    """

    now: Roofline
    ahead: Mapping[str, Roofline]

    def gain(self, change: str) -> float:
        """Speed-up at best."""
        return self.now.latency_ms / self.ahead[change].latency_ms

    def __str__(self) -> str:
        gains = ", ".join(f"{self.gain(change):.1f}x {change}" for change in self.ahead)
        limit, share = max(self.now.shares().items(), key=lambda item: item[1])
        return f"at best about {gains}: {LIMITS[limit]} takes {share:.0%} of the model's least time"


def limits(whole: Mapping[Precision, Roofline], slim: Mapping[Precision, Roofline]) -> Limits | None:
    """The limits that rooflines of a model and of the same at half its channels set; None where none is known."""
    floats = [roofline for precision, roofline in whole.items() if precision != "8 bits"]
    if not floats:
        return None
    now = min(floats, key=lambda roofline: roofline.latency_ms)
    ahead = {}
    if "8 bits" in whole:
        ahead["from 8 bits"] = whole["8 bits"]
    if slim:
        ahead["at half the channels"] = slim[now.precision]
    if "8 bits" in slim:
        ahead["from both"] = slim["8 bits"]
    return Limits(now, ahead) if ahead else None


def rooflines(operations: Sequence[Operation], target: Target) -> dict[Precision, Roofline]:
    """Precision -> roofline, of those whose arithmetic the target's card has measured; empty for a card without measurements."""
    card = target.measured
    if card is None or card.operation_us is None:
        return {}
    measured = {reached.weight_bits for reached in card.throughput if reached.weight_bits == reached.activation_bits}
    samples = target.batch * target.streams
    return {
        precision: _roofline(operations, card, precision, samples)
        for precision, bits in BITS.items()
        if bits in measured
    }


def _roofline(operations: Sequence[Operation], card: DeviceCard, precision: Precision, samples: int) -> Roofline:
    dispatch = card.operation_us or 0.0
    rates, bits = _rates(card, BITS[precision]), BITS[precision]
    resident = sum(each.weights for each in operations) * bits / 8
    resident += max((each.activations for each in operations), default=0) * samples * bits / 8
    bandwidth = _bandwidth(card, resident)
    bounds = []
    for each in operations:
        # Softmax, norms and attention's products stay in float where layers are in integers.
        own = FULL_PRECISION if each.name == OTHERS and precision == "8 bits" else bits
        moved = (each.weights + each.activations * samples) * own / 8
        rate = (rates if own == bits else _rates(card, own)).get(each.kind)
        arithmetic = each.macs * samples / rate / 1e3 if rate else 0.0
        bounds.append(Bound(each.name, arithmetic, moved / bandwidth / 1e3, dispatch * each.count))
    return Roofline(precision, bounds, max(0.0, card.dispatch_us - dispatch))


def _rates(card: DeviceCard, bits: int) -> dict[str, float]:
    """Kind of operation -> 10^9 multiply-adds a second at these bits, or in float32 where these are slower or were not measured."""
    found: dict[str, float] = {}
    for reached in card.throughput:
        if reached.weight_bits == reached.activation_bits and reached.weight_bits in (bits, FULL_PRECISION):
            found[reached.operation] = max(reached.gmac_per_s, found.get(reached.operation, 0.0))
    return found


def _bandwidth(card: DeviceCard, resident: float) -> float:
    """10^9 bytes a second of the smallest memory that holds so many bytes; infinite where the card knows none, as on a GPU."""
    curve = card.gb_per_s_by_bytes or ({0: card.memory_gb_per_s} if card.memory_gb_per_s else {})
    held = [size for size in curve if size >= resident]
    if not curve:
        return float("inf")
    return curve[min(held)] if held else curve[max(curve)]
