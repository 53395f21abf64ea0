"""A candidate: what a policy makes of a model, ready to be scored and lowered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from torch import nn

from .policy import Policy


@dataclass(frozen=True)
class QuantParams:
    """Parameters of affine quantization: real = scale x (integer - zero_point).

    Attributes:
        scale: float32, shape [] for a whole tensor, [channels] along axis 0 of a weight or [channels, groups] of its inputs.
        zero_point: integer of the container type, same shape.
        low, high: smallest and largest integer used; narrower than the container below 8 bits.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight on its grid.

    Attributes:
        integers: int8, shape of the weight.
        bias: float32 [channels] with batch-norm folded in, or None.
        group_size: how many neighbouring inputs share a scale, the last group perhaps fewer; 0 where all do.
    """

    integers: np.ndarray
    grid: QuantParams
    bias: np.ndarray | None
    group_size: int = 0

    def values(self) -> np.ndarray:
        """The weight, float32."""
        return dequantized(self.integers, self.grid.scale, self.grid.zero_point, self.group_size)


def dequantized(integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, group_size: int) -> np.ndarray:
    """A weight's integers less their zero points, times their scales in float32, as DequantizeLinear multiplies them."""
    scale, zero_point = (per_input(values, integers.shape, group_size) for values in (scale, zero_point))
    return (integers.astype(np.float32) - zero_point.astype(np.float32)) * scale.astype(np.float32)


def per_input(values: np.ndarray, shape: tuple[int, ...], group_size: int) -> np.ndarray:
    """Values of channels, or of groups of inputs, that broadcast to a weight of this `shape`."""
    if not group_size:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    return np.repeat(values, group_size, axis=1)[:, : shape[1]]


@dataclass(frozen=True)
class CodedWeight:
    """A weight as codes of the few values it takes.

    Attributes:
        codes: int8, shape of the weight; -2^(bits - 1) .. 2^(bits - 1) - 1, and 0 for zero wherever zero is a value.
        table: float32 [at most 2^bits]; `table[code]` is the value of a code, a negative one counted from the end.
    """

    codes: np.ndarray
    table: np.ndarray

    def values(self) -> np.ndarray:
        """The weight, float32."""
        return self.table[self.codes]


@dataclass(frozen=True)
class RoundedWeight:
    """A weight in bfloat16: `values` of ml_dtypes.bfloat16, shape of the weight, batch-norm folded in; `bias` float32
    [channels] with batch-norm folded in, its numbers bfloat16 where the layer's activations are; None where it has none."""

    values: np.ndarray
    bias: np.ndarray | None

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray | None, rounds_bias: bool) -> RoundedWeight:
        """Round `weight`, float32, and perhaps `bias`."""
        if bias is not None and rounds_bias:
            bias = bias.astype(ml_dtypes.bfloat16).astype(np.float32)
        return cls(weight.astype(ml_dtypes.bfloat16), bias)


@dataclass(frozen=True)
class Quantization:
    """Every tensor of a model that is stored in fewer bits, or runs on an integer grid.

    Attributes:
        weights: layer -> its quantized weight.
        inputs: layer -> grid of the tensor it reads.
        additions: (module path, index among the additions in that module, operand 0 or 1) -> grid of a residual operand.
        codes: layer -> its weight by a codebook; the candidate's model holds the same values.
        bfloat16: layer -> its weight in bfloat16.
        norms: layer -> batch-norm that is folded into its quantized or rounded weight.
        kept_norms: those of them that the model also runs after something else, where they are computed.
        embeddings: embedding -> its table, one scale for each row.
        recurrent: path of a recurrent layer's matrix -> the matrix on its grid, [gates x units, ..] as torch orders the gates.
    """

    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    inputs: Mapping[str, QuantParams] = field(default_factory=dict)
    additions: Mapping[tuple[str, int, int], QuantParams] = field(default_factory=dict)
    codes: Mapping[str, CodedWeight] = field(default_factory=dict)
    bfloat16: Mapping[str, RoundedWeight] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
    kept_norms: frozenset[str] = frozenset()
    recurrent: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    embeddings: Mapping[str, QuantizedWeight] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A compressed model.

    Attributes:
        policy: what was decided.
        model: in eval mode; channels removed, weights masked and recovered; still float32.
        quantization: the grids the artifact computes on.
    """

    policy: Policy
    model: nn.Module
    quantization: Quantization = Quantization()
