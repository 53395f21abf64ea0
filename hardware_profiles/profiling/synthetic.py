"""Candidates of any model at any bits without data: for timing and for asking what kernels there are, never for scoring."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ...spaces.models.layers import find_layers
from ...spaces.policies.candidate import Candidate, Quantization, QuantizedWeight, QuantParams, RoundedWeight
from ...spaces.policies.layer_policy import BFLOAT16_BITS
from ...spaces.policies.policy import LayerPolicy, Policy


def synthetic_candidate(
    model: nn.Module, example: Tensor, weight_bits: int, activation_bits: int, symmetric: bool = False
) -> Candidate:
    """`model` with every layer at these bits, on grids that no data calibrated: for timing, not for scoring.

    Args:
        symmetric: the runtime takes activation grids with zero in their middle only.
    """
    layers = [layer.name for layer in find_layers(model, example)]
    policy = Policy(layers={name: LayerPolicy(weight_bits, activation_bits) for name in layers})
    weights = {name: _weight(model.get_submodule(name), weight_bits) for name in layers if weight_bits <= 8}
    levels = 2 ** min(activation_bits, 8)
    # Behind a ReLU calibration finds a zero point of 0, which is what lets a runtime fuse the two.
    zero = levels // 2 if symmetric else 0
    grid = QuantParams(np.array(0.05, np.float32), np.array(zero, np.uint8), 0, levels - 1)
    inputs = {name: grid for name in layers if activation_bits <= 8}
    has_halves, rounds_biases = weight_bits == BFLOAT16_BITS, activation_bits == BFLOAT16_BITS
    halves = {name: _rounded(model.get_submodule(name), rounds_biases) for name in layers if has_halves}
    return Candidate(policy, model, Quantization(weights, inputs, bfloat16=halves))


def _rounded(layer: nn.Module, rounds_bias: bool) -> RoundedWeight:
    bias = None if layer.bias is None else layer.bias.detach().numpy()  # type: ignore[operator]
    return RoundedWeight.of(layer.weight.detach().numpy(), bias, rounds_bias)  # type: ignore[operator]


def _weight(layer: nn.Module, bits: int) -> QuantizedWeight:
    weight = layer.weight.detach().numpy()  # type: ignore[operator]
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float32) / high
    integers = np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
    bias = None if layer.bias is None else layer.bias.detach().numpy()  # type: ignore[operator]
    return QuantizedWeight(integers, QuantParams(scale, np.zeros(len(weight), np.int8), -high - 1, high), bias)
