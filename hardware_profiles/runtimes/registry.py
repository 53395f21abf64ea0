"""What is known of each runtime before its library is imported.

A further runtime is an entry here and its module, or a `RuntimeEntry` under an entry point in the group `slimfront.runtimes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...core.errors import TargetError
from ...core.registry import Registry
from ...spaces.policies.layer_policy import ACTIVATION_BITS, BFLOAT16_BITS, WEIGHT_BITS
from ...spaces.policies.quantization_scheme import Activations


@dataclass(frozen=True)
class RuntimeEntry:
    """What is known of a runtime before its library is imported.

    Attributes:
        module, cls: where it is: a dotted module, one that begins with a dot in this package, and the class in it.
        install: what to install for it.
        weight_bits, activation_bits: what it can be given; a card that offers more is refused.
        dynamic: whether it takes 8-bit activations that are quantized dynamically.
        dynamic_lstm: whether it has an LSTM on 8-bit integers whose ranges are computed at run time.
        dynamic_axes: whether an artifact takes inputs of other sizes than the example's along axes that a workload names.
        integer_tables: whether it looks rows up in embeddings' tables of integers.
        weight_groups: whether it takes weights whose inputs have scales by groups.
        activations: the activation grids that it multiplies fastest, as `Scheme.activations` names them; a study's unless its file
            says otherwise.
        symmetric: whether it takes activation grids with zero in their middle only.
        gpu: whether it computes on an NVIDIA GPU: its memory is not the host's, and one batch runs there at once.
        spins: its threads spin for one another at every operation, so that more than a target has pay on an idle machine
            only: on a busy one, two took 17 times as long as one for an image of digits.
        runs_code: its artifacts hold code that loading or running them executes: compiled kernels (TensorRT's engines, what
            Inductor makes), pickles (torch.export's archives). Those of strangers are not loaded.
        options: what the card's `options` may hold, name -> the values it may have.
        saturates: it multiplies 8-bit integers in pairs and adds each pair in 16 bits where the processor has no VNNI.
        package: what a bundle's loader imports, where it is not called as the runtime.
        plainly: a sentence for a bundle's card: what becomes of an artifact that is loaded without the settings it was measured
            with.
        loader: "module:function" that loads an artifact in a bundle's run.py, as `studies.bundles.standalone.LOADERS` has them
            for slimfront's own runtimes: `function(path, threads)` returns a function from inputs by name to outputs by name, and its source
            runs on its own, with numpy as `np`. A bundle of a runtime without one has no run.py.
    """

    module: str
    cls: str
    install: str
    weight_bits: tuple[int, ...] = WEIGHT_BITS
    activation_bits: tuple[int, ...] = ACTIVATION_BITS
    dynamic: bool = False
    dynamic_lstm: bool = False
    dynamic_axes: bool = False
    integer_tables: bool = False
    weight_groups: bool = False
    activations: Activations = "affine"
    symmetric: bool = False
    gpu: bool = False
    spins: bool = False
    runs_code: bool = False
    options: Mapping[str, Sequence[int]] = field(default_factory=dict)
    saturates: bool = False
    package: str = ""
    plainly: str = ""
    loader: str = ""


_TUNED = "The settings are part of what was measured, and are not read from the file: {} {}. What it computes may \
then differ, and it may take several times as long as this card says."


_BUILT_IN = {
    "openvino": RuntimeEntry(
        ".onnx.openvino_runtime",
        "OpenVinoRuntime",
        "slimfront[openvino]",
        dynamic=True,
        dynamic_axes=True,
        integer_tables=True,
        weight_groups=True,
        activations="signed",
        saturates=True,
        plainly=_TUNED.format(
            '`core.compile_model(path, "CPU")` alone',
            "picks the precision of floats (bfloat16 where the processor has it), quantizes what linear layers read, and takes "
            "every core",
        ),
    ),
    "onnxruntime": RuntimeEntry(
        ".onnx.onnxruntime_runtime",
        "OnnxRuntime",
        "slimfront[onnxruntime]",
        dynamic=True,
        dynamic_axes=True,
        integer_tables=True,
        dynamic_lstm=True,
        weight_groups=True,
        saturates=True,
        plainly=_TUNED.format(
            "`InferenceSession(path)` alone",
            "quantizes what linear layers with integer weights read, and takes every core",
        ),
    ),
    "litert": RuntimeEntry(
        ".litert.runtime",
        "LiteRtRuntime",
        "slimfront[litert]",
        dynamic=True,
        package="ai-edge-litert",
        plainly=_TUNED.format("`Interpreter(path)` alone", "takes as many threads as it likes"),
    ),
    "tensorrt": RuntimeEntry(
        ".nvidia.tensorrt_runtime",
        "TensorRtRuntime",
        "slimfront[tensorrt]",
        activation_bits=tuple(bits for bits in ACTIVATION_BITS if bits != BFLOAT16_BITS),
        activations="symmetric",
        symmetric=True,
        gpu=True,
        runs_code=True,
        options={"optimization_level": range(6), "workspace_mib": range(1, 2**20 + 1)},
        package="tensorrt with torch",
        plainly="The engine runs on GPUs of the kind that it was built on, with the same version of TensorRT.",
    ),
    "torch": RuntimeEntry(
        ".torch.runtime",
        "TorchRuntime",
        "torch",
        dynamic=True,
        integer_tables=True,
        weight_groups=True,
        spins=True,
        runs_code=True,
        options={"compile": (False, True)},
        plainly=_TUNED.format(
            "`load_pt2(path)` alone", "takes as many threads as the process has, and records gradients"
        ),
    ),
    "torch-cuda": RuntimeEntry(
        ".nvidia.torch_cuda_runtime",
        "TorchCudaRuntime",
        "torch",
        dynamic=True,
        weight_groups=True,
        gpu=True,
        runs_code=True,
        package="torch",
        plainly=_TUNED.format("`load_pt2(path)` alone", "may round floats to TF32"),
    ),
}

RUNTIMES: Registry[RuntimeEntry] = Registry("runtime", "slimfront.runtimes", TargetError, _BUILT_IN)
"""Name -> what is known of the runtime."""


def runtimes() -> list[str]:
    """Names of the runtimes slimfront knows."""
    return list(RUNTIMES)
