"""The tiny workload, whose metric does to the process of each trial, once, what the next file of a folder is named after."""

import ctypes
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from slimfront.hardware_profiles.runtimes.onnx.openvino_runtime import OpenVinoRuntime
from slimfront.workloads.workload import Workload
from tiny_workload import workload as tiny  # next to this file, which is on the path while it loads

IN_DRIVER = os.environ.get("UNLUCKY_DRIVER") == str(os.getpid())


class Whim(BaseException):
    """Not even an Exception."""


def _raise(error: BaseException) -> None:
    raise error


def _hold(_memory: torch.Tensor) -> None:
    time.sleep(1000)


def _refuse(bits: int) -> None:
    """Have the runtime of this process refuse policies with so many bits."""
    lower = OpenVinoRuntime.lower

    def refusing(self, candidate, *others):
        if any(layer.weight_bits == bits for layer in candidate.policy.layers.values()):
            raise RuntimeError(f"no kernel for {bits} bits")
        return lower(self, candidate, *others)

    OpenVinoRuntime.lower = refusing


def _stall() -> None:
    """Have the runtime of this process hang whenever it lowers anything from now on."""
    OpenVinoRuntime.lower = lambda *_: time.sleep(1000)


LUCK = {
    "stall": _stall,
    "none": lambda: None,
    "greed": lambda: _hold(torch.ones(2 * 10**9, dtype=torch.uint8)),
    "exit": lambda: sys.exit(0),
    "vanish": lambda: os._exit(0),
    "crash": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(1000),
    "hang_in_c": lambda: ctypes.PyDLL(None).sleep(1000),  # with the interpreter's lock held
    "generator_exit": lambda: _raise(GeneratorExit("all of a sudden")),
    "interrupt": lambda: _raise(KeyboardInterrupt("nobody pressed anything")),
    "whim": lambda: _raise(Whim("why not")),
    "text": lambda: _raise(ValueError("half \udc80 nul \x00 bell \x07 " + "y" * 100_000)),
    "full": lambda: _raise(OSError(28, "No space left on device")),
}


def _is_new(log: str, last: Path) -> bool:
    """Whether this trial, known by what it prints to, has had no luck yet."""
    is_new = not last.exists() or last.read_text() != log
    last.write_text(log)
    return is_new


def _metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    folder = Path(os.environ["UNLUCKY"])
    if not IN_DRIVER and _is_new(os.readlink("/proc/self/fd/1"), folder.with_suffix(".last")):
        for file in sorted(folder.iterdir())[:1]:
            file.unlink()
            LUCK[file.name.split("-")[1]]()
    return float((outputs.argmax(1) == targets).float().mean())


def workload() -> Workload:
    """Loads in the driver; in workers it raises or exits where the environment says so."""
    if not IN_DRIVER and (start := os.environ.get("UNLUCKY_START")):
        _raise(RuntimeError("no such device")) if start == "raise" else os._exit(3)
    if not IN_DRIVER and (bits := os.environ.get("UNLUCKY_BITS")):
        _refuse(int(bits))
    return replace(tiny(), metric=_metric)
