"""The device "host" of `host_device.cpp`: other than the processor to torch, whose memory and operations it uses."""

from __future__ import annotations

import os
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slimfront.core.threads import torch_threads
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("host_device.cpp")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums are the same numbers."""
    with torch_threads(1):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make the device before the first test runs: torch counts a process's devices at its first backward pass, and never again."""
    if any(SOURCE.parent in item.path.parents for item in items) and _can_build():
        _make_device()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device; a process has it to its end."""
    if not _can_build():
        pytest.skip("a device for tests is built by c++ and ninja, and one of them is missing")
    return torch.device("host", 0)


def _can_build() -> bool:
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where ninja is, if it came by pip
    return shutil.which("c++") is not None and shutil.which("ninja") is not None


def _make_device() -> None:
    """Build the device, which takes a compiler some seconds the first time, and have torch know it."""
    torch.utils.rename_privateuse1_backend("host")
    torch._register_device_module("host", _module())
    cpp_extension.load("slimfront_host_device", [str(SOURCE)], is_python_module=False, extra_cflags=["-O0"])
    torch.utils.generate_methods_for_privateuse1_backend()


def _module() -> types.ModuleType:
    """What torch asks of the module of a device."""
    module = types.ModuleType("torch.host")
    answers = {
        "is_available": False,  # for what looks for an accelerator of its own accord, such as DataParallel, in other tests
        "device_count": 1,
        "current_device": 0,
        "_is_in_bad_fork": False,
        "manual_seed_all": None,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    module.get_rng_state = lambda *_: torch.get_rng_state()  # its random numbers are the processor's
    return module
