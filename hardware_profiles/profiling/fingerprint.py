"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from glob import glob
from importlib.metadata import version
from typing import Any

import psutil

from ...core.errors import TargetError
from ..cards.target import Target
from ..runtimes.base import Runtime
from ..runtimes.registry import RUNTIMES

PACKAGES = ("slimfront", "torch", "torchvision", "torchao", "torch-pruning", "fvcore", "onnx", "optuna", "ray")
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvhost*", "/dev/nvmap", "/dev/nvgpu*", "/dev/dxg", "/dev/kfd")
"""The device files of GPUs that torch can compute on: of NVIDIA, its Jetson, WSL, and AMD."""

RELEVANT_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)
"""CPU features that decide which kernels a runtime picks."""


def machine() -> dict[str, Any]:
    """The machine this runs on, as plain JSON values."""
    cpu, flags = _cpu()
    return {
        "cpu": cpu,
        "gpu": _gpu(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in RELEVANT_FLAGS if flag in flags],
        "governor": _read(GOVERNOR),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def saturates(machine: Mapping[str, Any], runtime: str) -> bool:
    """Whether sums of 8-bit weights times 8-bit activations saturate on this machine; on others they are exact.

    Two products of an unsigned and a signed byte reach 2 * 255 * 127 and are added in 16 bits by `vpmaddubsw`; VNNI adds them
    in 32 (Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2). With 7 bits on either side they fit.

    Args:
        machine: the result of `machine()`.
    """
    flags = machine.get("flags", ())
    return RUNTIMES[runtime].saturates and "avx2" in flags and not any("vnni" in flag for flag in flags)


def versions(runtime: Runtime) -> dict[str, str]:
    """Versions of Python, slimfront, what it measures with and the target's runtime."""
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, runtime.name: runtime.version()}


def require_fit(target: Target, runtime: Runtime) -> None:
    """Require that a measured card was measured on a machine like this one; a template fits everywhere, and so does a
    card that predicts for a machine elsewhere.

    Raises:
        TargetError: it was not, or this process may use fewer cores than the target has threads; the message names what
            differs.
    """
    misfit = (
        target.measured and not target.predict and target.measured.misfit(machine(), runtime.name, runtime.version())
    )
    if misfit:
        raise TargetError(
            f"target {target.name} was measured with {misfit}; profile this machine with `slimfront profile`"
        )
    if not target.predict:
        require_cores(target, os.sched_getaffinity(0))


def require_cores(target: Target, cores: Collection[int]) -> None:
    """Require that each of the target's threads has one of `cores`; on a GPU they are the host's and do not compute.

    Raises:
        TargetError: it has not; the threads would spin for each other, and their times say nothing.
    """
    if target.threads > len(cores) and not RUNTIMES[target.runtime].gpu:
        raise TargetError(
            f"target {target.name}: threads: {target.threads}, but this process may use {len(cores)} of the machine's cores"
        )


def _cpu() -> tuple[str, set[str]]:
    """Model name and feature flags, as Linux reports them; the bare processor name elsewhere."""
    lines = (line.partition(":") for line in (_read("/proc/cpuinfo") or "").splitlines())
    reported = {key.strip(): value.strip() for key, _, value in lines}
    arm = " ".join(
        f"{key} {reported[key]}" for key in ("CPU implementer", "CPU part") if key in reported
    )  # has no model name
    flags = reported.get("flags", reported.get("Features", ""))
    return reported.get("model name") or arm or platform.processor() or "unknown", set(flags.split())


def _gpu() -> str | None:
    """Name of the GPU that torch computes on; torch, whose import takes over a second, is asked only where there may be one."""
    if platform.system() == "Linux" and not any(map(glob, GPU_DEVICES)):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None  # not every machine reports it
