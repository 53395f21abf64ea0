"""The measurements of a machine that `slimfront profile` writes into its target's card."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

FLOAT = ("f32", "fp32")
"""The names that runtimes give to the precision of an uncompressed model."""

DECISIVE = ("cpu", "gpu", "architecture", "cores", "flags", "governor")
"""The parts of a machine's fingerprint that determine its speed."""


class Kernel(BaseModel):
    """How a runtime executes one kind of operation at one pair of bit-widths.

    Attributes:
        operation: "conv2d", "depthwise" or "linear".
        weight_bits, activation_bits: what a policy asks for.
        executed: the precision it runs in by the runtime's own report; None where the runtime does not report it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str
    weight_bits: int
    activation_bits: int
    executed: str | None

    @property
    def storage_only(self) -> bool:
        """Whether the bits change the file but not the arithmetic."""
        return self.executed in FLOAT and (self.weight_bits, self.activation_bits) != (32, 32)


class Throughput(BaseModel):
    """Multiply-adds a second that one kind of operation reaches, in units of 10^9, with the 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str
    weight_bits: int
    activation_bits: int
    gmac_per_s: float
    low: float
    high: float
    noisy: bool


class DeviceCard(BaseModel):
    """The performance of a machine with a runtime.

    Attributes:
        measured_at: when.
        machine, versions: fingerprint of where, see `fingerprint`.
        memory_gb_per_s: bytes read and written by copying large arrays on the target's cores, in 10^9 a second; None
            where the runtime computes in a GPU's memory.
        gb_per_s_by_bytes: the same for arrays of several sizes: bytes that are read and written again and again, which a cache
            may hold -> 10^9 bytes a second; empty in the card of an older version.
        dispatch_us: latency of a model that computes next to nothing.
        operation_us: what one more operation adds to it; None where that was not measured.
        kernels: which bits have arithmetic of their own.
        throughput: what that arithmetic reaches.
        reference_ms: latency of well-known models at full precision, batch of the target.
        left_out: what of all this the profile had no time for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured_at: datetime
    machine: dict[str, Any]
    versions: dict[str, str]
    memory_gb_per_s: float | None
    dispatch_us: float
    kernels: list[Kernel]
    throughput: list[Throughput]
    reference_ms: dict[str, float]
    left_out: list[str] = []
    gb_per_s_by_bytes: dict[int, float] = {}
    operation_us: float | None = None

    def misfit(self, machine: dict[str, Any], runtime: str, version: str) -> str | None:
        """The difference of this machine from the one that the card was measured on; None where there is none.

        Args:
            machine: fingerprint of this one. runtime, version: what runs here.
        """
        for key in DECISIVE:
            if self.machine.get(key) != machine.get(key):
                return f"{key} {_shown(self.machine.get(key))}, here {_shown(machine.get(key))}"
        if self.versions.get(runtime) != version:
            return f"{runtime} {self.versions.get(runtime)}, here {version}"
        return None


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
