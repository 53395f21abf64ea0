"""The machine and the versions that are stored with every number."""

import json
import os
import platform
import re
from importlib.metadata import version

import psutil
import pytest
from slimfront.core.errors import TargetError
from slimfront.hardware_profiles.profiling import fingerprint
from slimfront.hardware_profiles.profiling.fingerprint import machine, saturates, versions
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.registry import runtimes


def test_this_machine():
    reported = machine()
    assert json.loads(json.dumps(reported)) == reported
    assert reported["cores"] == len(os.sched_getaffinity(0))
    assert reported["memory_bytes"] == psutil.virtual_memory().total
    assert reported["architecture"] == platform.machine()
    assert reported["system"].startswith(platform.system())
    assert reported["cpu"]


CPUINFO = """processor\t: 0
model name\t: Some CPU @ 3.00GHz
flags\t\t: fpu sse avx2 avx512_vnni unheard_of

processor\t: 1
model name\t: Some CPU @ 3.00GHz
flags\t\t: fpu sse avx2 avx512_vnni unheard_of
"""


def test_the_cpu_as_linux_tells_it(monkeypatch):
    monkeypatch.setattr(fingerprint, "_read", {"/proc/cpuinfo": CPUINFO, fingerprint.GOVERNOR: "performance"}.get)
    reported = machine()
    assert (reported["cpu"], reported["flags"], reported["governor"]) == (
        "Some CPU @ 3.00GHz",
        ["avx2", "avx512_vnni"],
        "performance",
    )


ARM_CPUINFO = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd i8mm bf16 unheard_of
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


def test_an_arm_cpu_is_known_by_its_maker_and_part(monkeypatch):
    monkeypatch.setattr(fingerprint, "_read", {"/proc/cpuinfo": ARM_CPUINFO}.get)
    reported = machine()
    assert (reported["cpu"], reported["flags"]) == ("CPU implementer 0x41 CPU part 0xd0c", ["asimd", "i8mm", "bf16"])


def test_a_machine_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(fingerprint, "_read", lambda path: None)
    monkeypatch.setattr(platform, "processor", lambda: "")
    reported = machine()
    assert (reported["cpu"], reported["flags"], reported["governor"]) == ("unknown", [], None)


@pytest.mark.parametrize(
    ("flags", "runtime", "expected"),
    [
        (["avx2", "avx512f"], "openvino", True),
        (["avx2"], "onnxruntime", True),
        (["avx2"], "litert", False),  # XNNPACK's kernels add in 32 bits
        (["avx2", "avx_vnni"], "openvino", False),
        (["avx2", "avx512f", "avx512_vnni"], "openvino", False),
        (["asimd"], "openvino", False),
    ],
)
def test_processors_on_which_8_bit_products_saturate(flags, runtime, expected):
    assert saturates({"flags": flags}, runtime) == expected


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="oneDNN is limited to less than the processor has")
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "litert"])
def test_kernels_saturate_where_the_flags_of_this_processor_say_so(runtime, adds_exactly):
    assert adds_exactly(runtime) != saturates(machine(), runtime)


@pytest.mark.parametrize("name", runtimes())
def test_versions_of_everything_that_makes_a_number(name):
    try:
        runtime = get_runtime(name)
    except TargetError as reason:  # no GPU, or no package for it
        pytest.skip(str(reason))
    reported = versions(runtime)
    assert reported["torch"] == version("torch")
    assert reported["python"] == platform.python_version()
    assert set(reported) == {"python", *fingerprint.PACKAGES, name}
    assert all(re.match(r"\d", text) for text in reported.values())
