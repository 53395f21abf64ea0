"""The layer of a node, read from its name, which contains the dotted path of the module that made it."""

from __future__ import annotations

import re

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""ONNX operations that a layer becomes."""

RECURRENT = ("GRU", "LSTM", "RNN")
"""ONNX operations that a recurrent layer becomes."""

TOGETHER = "+"
"""Between layers that are computed as one product, in the name of its node."""

_NAME = re.compile(rf"(?:.*/)?([^/]*)/(?:{'|'.join((*WEIGHTED, *RECURRENT))})(?=/|$)")
_AGAIN = re.compile(r"/\d+$")


def module_of_node(name: str) -> str:
    """The dotted path in an ONNX node's name: "/layer1/layer1.0/Add" was made by "layer1.0", "/Add" by the model itself."""
    return name.rpartition("/")[0].rpartition("/")[2]


def first_run(name: str) -> str:
    """The name of what a layer computes the first time it runs: "/rnn/Gemm" of "/rnn/Gemm/3"."""
    return _AGAIN.sub("", name)


def layer_of(name: str) -> str | None:
    """The layer in the name a runtime gives an operation or a weight, None where there is none.

    Runtimes append parts of their own: "/fc/Gemm/WithoutBiases" and "/fc/Gemm/weight" are of the layer "fc".
    """
    found = _NAME.match(name)
    return found[1] if found else None


def layers_of(name: str) -> set[str]:
    """The layers in such a name: one, several that are computed as one product, or none."""
    layer = layer_of(name)
    return set() if layer is None else set(layer.split(TOGETHER))
