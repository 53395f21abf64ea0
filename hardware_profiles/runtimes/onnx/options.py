"""How an ONNX file is written for one runtime: what that runtime is slow or wrong with otherwise."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoweringOptions:
    """Choices among ways to write an ONNX file that mean the same, for the runtime that loads it.

    Attributes:
        bound_float_layers: put a Clip after the Q/DQ pair of a layer whose weight stays float, for a runtime that would
            otherwise quantize that weight too.
        integer_biases: write the bias of a linear layer on integers as int32, for a runtime that would otherwise compute
            the layer in float.
        integer_products: write dynamically quantized layers in integer operations; otherwise they are left to a runtime that
            quantizes their inputs itself, which the file's metadata ask for under `lowering.DYNAMIC`.
        fused_linears: compute linear layers that read the same tensor by one product.
        folded_weights: dequantize the weights of layers that compute in float by operations that a runtime folds when it
            loads the file, for a runtime that would otherwise dequantize them at every run.
        group_kernels: bits of weights with scales by groups that the runtime multiplies as they are stored; others are
            dequantized when it loads the file.
        signed_grids: write activation grids with zero in their middle on signed integers, for a runtime that multiplies
            those faster than unsigned ones with a zero point.
        dynamic_lstm: write LSTMs on dynamic integers as the operator of ONNX Runtime that computes them.
        kept_axes: write reductions among quantized layers so that they keep their axes, for a runtime that computes others wrongly.
        spelt_permutations: write permutations of channels by their numbers so that the runtime does not fold them, which it does wrongly.
    """

    bound_float_layers: bool = False
    integer_biases: bool = False
    integer_products: bool = False
    fused_linears: bool = False
    folded_weights: bool = False
    group_kernels: Collection[int] = ()
    signed_grids: bool = False
    dynamic_lstm: bool = False
    kept_axes: bool = False
    spelt_permutations: bool = False


NO_OPTIONS = LoweringOptions()
"""A file in the operations of the ONNX standard alone, which any runtime loads."""
