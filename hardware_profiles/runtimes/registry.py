"""What is known of each runtime before its library is imported.

A further runtime is an entry here and its module, or a `RuntimeEntry` under an entry point in the group `slimfront.runtimes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...core.errors import TargetError
from ...core.registry import Registry
from ...spaces.policies.layer_policy import ACTIVATION_BITS, BFLOAT16_BITS, WEIGHT_BITS


@dataclass(frozen=True)
class RuntimeEntry:
    """What is known of a runtime before its library is imported.

    Attributes:
        module, cls: where it is: a dotted module, one that begins with a dot in this package, and the class in it.
        install: what to install for it.
        weight_bits, activation_bits: what it can be given; a card that offers more is refused.
        dynamic: whether it takes 8-bit activations whose range is computed at run time.
        symmetric: whether it takes activation grids with zero in their middle only.
        gpu: whether it computes on an NVIDIA GPU: its memory is not the host's, and one batch runs there at once.
        spins: its threads spin for one another at every operation, so that more than a target has pay on an idle machine
            only: on a busy one, two took 17 times as long as one for an image of digits.
        runs_code: its artifacts hold code that loading or running them executes: compiled kernels (TensorRT's engines, what
            Inductor makes), pickles (torch.export's archives). Those of strangers are not loaded.
        options: what the card's `options` may hold, name -> the values it may have.
    """

    module: str
    cls: str
    install: str
    weight_bits: tuple[int, ...] = WEIGHT_BITS
    activation_bits: tuple[int, ...] = ACTIVATION_BITS
    dynamic: bool = False
    symmetric: bool = False
    gpu: bool = False
    spins: bool = False
    runs_code: bool = False
    options: Mapping[str, Sequence[int]] = field(default_factory=dict)


RUNTIMES: Registry[RuntimeEntry] = Registry("runtime", "slimfront.runtimes", TargetError)
"""Name -> what is known of the runtime."""

RUNTIMES.register(
    "openvino", RuntimeEntry(".onnx.openvino_runtime", "OpenVinoRuntime", "slimfront[openvino]", dynamic=True)
)
RUNTIMES.register(
    "onnxruntime", RuntimeEntry(".onnx.onnxruntime_runtime", "OnnxRuntime", "slimfront[onnxruntime]", dynamic=True)
)
RUNTIMES.register("litert", RuntimeEntry(".litert.runtime", "LiteRtRuntime", "slimfront[litert]", dynamic=True))
RUNTIMES.register(
    "tensorrt",
    RuntimeEntry(
        ".nvidia.tensorrt_runtime",
        "TensorRtRuntime",
        "slimfront[tensorrt]",
        activation_bits=tuple(bits for bits in ACTIVATION_BITS if bits != BFLOAT16_BITS),
        symmetric=True,
        gpu=True,
        runs_code=True,
        options={"optimization_level": range(6), "workspace_mib": range(1, 2**20 + 1)},
    ),
)
RUNTIMES.register(
    "torch",
    RuntimeEntry(
        ".torch.runtime",
        "TorchRuntime",
        "torch",
        dynamic=True,
        spins=True,
        runs_code=True,
        options={"compile": (False, True)},
    ),
)
RUNTIMES.register(
    "torch-cuda",
    RuntimeEntry(".nvidia.torch_cuda_runtime", "TorchCudaRuntime", "torch", dynamic=True, gpu=True, runs_code=True),
)


def runtimes() -> list[str]:
    """Names of the runtimes slimfront knows."""
    return list(RUNTIMES)
