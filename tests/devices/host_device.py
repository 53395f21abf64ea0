"""The device "host" of `host_device.cpp`: other than the processor to torch, whose memory and operations it uses."""

from __future__ import annotations

import os
import shutil
import sys
import types
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("host_device.cpp")


@cache
def host_device() -> torch.device:
    """The device, built the first time that it is asked for.

    Raises:
        RuntimeError: there is no C++ compiler, or it cannot build it.
    """
    from torch.utils import cpp_extension

    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where ninja is, if it came by pip
    if shutil.which("c++") is None or shutil.which("ninja") is None:
        raise RuntimeError("building a device for tests needs c++ and ninja")
    torch.utils.rename_privateuse1_backend("host")
    torch._register_device_module("host", _module())
    cpp_extension.load("slimfront_host_device", [str(SOURCE)], is_python_module=False, extra_cflags=["-O0"])
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device("host", 0)


def _module() -> types.ModuleType:
    """What torch asks of the module of a device."""
    module = types.ModuleType("torch.host")
    answers = {"is_available": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False}
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=0: torch.get_rng_state()  # its random numbers are the processor's
    module.set_rng_state = lambda state, device=0: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return module
