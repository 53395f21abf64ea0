"""Energy counters of this machine: RAPL of the processor packages, NVML of an NVIDIA GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from ...core.errors import EvaluationError
from ..runtimes.registry import RUNTIMES
from .blocks import Run

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3


class EnergyMeter(Protocol):
    """A counter that only increases.

    Attributes:
        name: what it covers, in a few words.
    """

    name: str

    def joules(self) -> float:
        """Energy used since a fixed moment."""
        ...


class Rapl:
    """All processor packages by Linux's powercap interface (Documentation/power/powercap/powercap.rst).

    It counts whatever runs on a package, idle cores and other processes too. Wrap-arounds between two readings are
    followed; a counter wraps within minutes to hours, so read it more often.
    """

    name = "RAPL, whole processor packages"

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = package_zones(root)
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = [self._read(zone) for zone in self._zones]
        self._used = 0

    def joules(self) -> float:
        now = [self._read(zone) for zone in self._zones]
        self._used += sum((new - old) % (top + 1) for new, old, top in zip(now, self._last, self._ranges, strict=True))
        self._last = now
        return self._used * MICRO

    @staticmethod
    def _read(zone: Path) -> int:
        return int((zone / "energy_uj").read_text())


def package_zones(root: Path) -> list[Path]:
    """Folders of the packages' counters, without their parts and `psys`, the whole platform, which would count energy twice."""
    return sorted(zone for zone in root.glob("intel-rapl:*") if (zone / "name").read_text().startswith("package"))


class Nvml:
    """The GPU that runtimes compute on, by NVML's total energy counter (Volta and newer)."""

    name = "NVML, whole GPU"

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found]
        import torch

        self._nvml = pynvml
        pynvml.nvmlInit()
        # Not by index: NVML knows nothing of CUDA_VISIBLE_DEVICES.
        self._device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        self.joules()

    def joules(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device) * MILLI


def energy_meter(runtime: str) -> EnergyMeter:
    """The counter that covers where `runtime` computes.

    Raises:
        EvaluationError: this machine has none that may be read; the message says why.
    """
    if RUNTIMES[runtime].gpu:
        try:
            return Nvml()
        except Exception as error:  # NVML's errors have no base that is there without it
            raise EvaluationError(
                f"energy needs NVML (pip install 'slimfront[nvml]') and an NVIDIA GPU: {error}"
            ) from error
    if not package_zones(POWERCAP):
        raise EvaluationError(f"energy needs RAPL counters, and there are none in {POWERCAP}")
    try:
        return Rapl()
    except PermissionError as error:
        raise EvaluationError(f"energy needs to read {error.filename}, which is root's here") from error


def joules_of_a_run(run: Run, seconds: float, meter: EnergyMeter) -> float:
    """Mean over the runs of about `seconds`, one at least."""
    deadline = time.perf_counter() + seconds
    before, runs = meter.joules(), 0
    while runs == 0 or time.perf_counter() < deadline:
        run()
        runs += 1
    return (meter.joules() - before) / runs
