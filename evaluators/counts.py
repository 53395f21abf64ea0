"""What can be counted without running a candidate: FLOPs, BOPs, parameters and packed bytes, by one formula each.

Formulas take arrays [..., layers] and numbers or arrays [...]: built models, bounds of a space and thousands of points at once are
counted by the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from ..compression.packing.packed import smallest_format
from ..compression.packing.packed_file import grid_bytes, has_zero_points, scales_of, stored_as_is, table_bytes
from ..core.measurement import Measurement
from ..core.metrics import metrics_named
from ..spaces.models.layers import LAYER_KINDS, WeightedLayer, layer_at, macs_by_module
from ..spaces.models.recurrent import RecurrentLayer, is_single_layer, matrix_names
from ..spaces.policies.float_precision import FLOAT32
from ..spaces.policies.layer_policy import FULL_PRECISION, LayerPolicy
from ..spaces.policies.operators import Operator
from ..spaces.policies.policy import Policy
from ..spaces.policies.recurrent_weights import read_bits_of, weight_bits_of
from ..spaces.policies.resolved import is_within
from ..spaces.policies.sparsity import zeros_in
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register

COUNTED = ("flops", "bops", "parameters", "packed_bytes")
"""Names of the metrics that have a formula here."""


def flops(macs: np.ndarray, others: float | np.ndarray) -> np.ndarray:
    """Multiply-adds of layers and of everything else; one fused multiply-add is one FLOP, as fvcore counts."""
    return macs.sum(axis=-1) + others


def bops(macs: np.ndarray, weight_bits: np.ndarray, activation_bits: np.ndarray) -> np.ndarray:
    """Multiply-adds x weight bits x activation bits over the layers (Wang et al. 2020, BayesianBits, arXiv:2005.07093)."""
    return (macs * weight_bits * activation_bits).sum(axis=-1)


def parameters(weights: np.ndarray, others: float | np.ndarray) -> np.ndarray:
    """Weights of layers, masked ones too, and all other parameters."""
    return weights.sum(axis=-1) + others


def packed(
    stored: np.ndarray, grids: np.ndarray, parameters: float | np.ndarray, buffers: float | np.ndarray
) -> np.ndarray:
    """Bytes of layers' weights and of their grids, and of all other parameters and buffers."""
    return stored.sum(axis=-1) + parameters + buffers + grids.sum(axis=-1)


@register
class Complexity(Evaluator):
    """FLOPs, BOPs and parameters; masked weights count in all three: no runtime here skips them."""

    name = "complexity"
    metrics = metrics_named("flops", "bops", "parameters")
    phases = ("counted",)

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        candidate = needed(lowered.candidate, "complexity needs the model")
        found = counts_of(
            candidate.model, macs_by_module(candidate.model, context.workload.example_input), candidate.policy
        )
        methods = {"flops": "fvcore", "bops": "fvcore x bits", "parameters": "count"}
        return [Measurement.exact(name, round(found[name]), method) for name, method in methods.items()]


def counts_of(model: nn.Module, macs: Mapping[str, int], policy: Policy) -> dict[str, float]:
    """Name of each of `COUNTED` -> count of `model`, whose channels are as they are, once all else in `policy` is done to it.

    With operators, packed bytes are counted as if one weight stood in each layer's place. Batch-norm that will be folded is
    counted as it stands; see `counted_bytes`, which knows more of a candidate that is built.

    Args:
        macs: dotted module path -> multiply-adds of `model`.
    """
    rows = _rows(model, macs, policy)
    layer_macs, layer_weights, weight_bits, activation_bits, stored, grids = (
        np.array([*rows.values()], float).reshape(-1, 6).T
    )
    other_macs = macs[""] - sum(macs.get(path, 0) for path in (*policy.removed_blocks, *rows))
    other_weights, other_bytes = _outside(model, list(rows), policy.removed_blocks)
    return {
        "flops": float(flops(layer_macs, other_macs)),
        "bops": float(bops(layer_macs, weight_bits, activation_bits)),
        "parameters": float(parameters(layer_weights, other_weights)),
        "packed_bytes": float(packed(stored, grids, other_bytes, 0)),
    }


def _rows(model: nn.Module, macs: Mapping[str, int], policy: Policy) -> dict[str, tuple[float, ...]]:
    """Path of each layer that no removed block took along -> what is counted of it."""
    rows = {}
    for path, module in model.named_modules():
        if is_within(path, policy.removed_blocks):
            continue
        if type(module) in LAYER_KINDS:
            rows[path] = _counted(layer_at(model, path), macs.get(path, 0), policy, path)
        elif isinstance(module, RecurrentLayer) and is_single_layer(module):
            rows[path] = _counted_recurrence(module, macs.get(path, 0), policy, path)
        elif path in policy.embeddings and isinstance(module, nn.Embedding):
            rows[path] = _counted_table(module, policy.embeddings[path])
    return rows


def _weights(model: nn.Module, layer: str) -> list[str]:
    """Paths of a layer's weight, or of a recurrent layer's matrices."""
    module = model.get_submodule(layer)
    names = matrix_names(module) if isinstance(module, RecurrentLayer) else ["weight"]
    return [f"{layer}.{name}" for name in names]


def _tensor(model: nn.Module, path: str) -> Tensor:
    """A weight, which a parametrization may compute."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _outside(model: nn.Module, layers: Sequence[str], gone: Sequence[str]) -> tuple[int, int]:
    """Parameters, and bytes of parameters and buffers, that are neither weights of `layers` nor in blocks that are `gone`."""
    weights = [path for layer in layers for path in _weights(model, layer)]
    every = sum(parameter.numel() for name, parameter in model.named_parameters() if not is_within(name, gone))
    others = stored_as_is(model, set(weights))
    # Of a weight that two layers share, which counts once among all parameters, one is taken off again.
    outside = every - sum(_tensor(model, path).numel() for path in weights)
    return outside, sum(tensor.nbytes for name, tensor in others if not is_within(name, gone))


def _counted(layer: WeightedLayer, macs: int, policy: Policy, path: str) -> tuple[float, ...]:
    """Of a layer once its decisions are done to it: multiply-adds, weights, the bits that both operands are multiplied with, bytes
    of the packed weights, and those of scales, zero points and table."""
    decided, rows, operator = policy.layer(path), len(layer.weight), Operator.parse(policy.layer(path).operator)
    fits = operator.why_not(layer.weight.shape, getattr(layer, "groups", 1)) is None
    weights = operator.weights(layer.weight.shape) if fits else layer.weight.numel()
    values = weights - round(zeros_in(layer.weight, decided.sparsity) * weights)
    _, stored = smallest_format(rows, -(-weights // rows), values, decided.weight_bits)
    scheme, columns = policy.scheme, layer.weight[0].numel()
    scales, origins = scales_of(decided, scheme, rows, columns), has_zero_points(decided, scheme)
    grids = grid_bytes(scales, decided.has_weight_grid, decided.has_activation_grid, origins)
    grids += table_bytes(decided.weight_bits) * decided.has_codebook
    macs_left = macs * (weights / layer.weight.numel())
    return (macs_left, weights, arithmetic_bits(decided), decided.activation_bits, stored, grids)


def _counted_recurrence(layer: RecurrentLayer, macs: int, policy: Policy, path: str) -> tuple[float, ...]:
    """As `_counted`, of all matrices of a recurrent layer; each row of each has a scale."""
    choice = policy.recurrent.get(path, FLOAT32)
    matrices = [layer.get_parameter(key) for key in matrix_names(layer)]
    bits = weight_bits_of(choice)
    stored = sum(smallest_format(len(m), m.shape[1], int(m.count_nonzero()), bits)[1] for m in matrices)
    grids = 4 * sum(map(len, matrices)) if choice != FLOAT32 else 0
    return (macs, sum(m.numel() for m in matrices), bits, read_bits_of(choice), stored, grids)


def _counted_table(layer: nn.Embedding, bits: int) -> tuple[float, ...]:
    """As `_counted`, of an embedding's table, which nothing is multiplied with; each row has a scale."""
    table = layer.weight
    _, stored = smallest_format(len(table), table.shape[1], int(table.count_nonzero()), bits)
    return (0, table.numel(), bits, FULL_PRECISION, stored, 4 * len(table))


def arithmetic_bits(layer: LayerPolicy) -> int:
    """Bits of the weight that is multiplied with; codes stand for float numbers."""
    return FULL_PRECISION if layer.has_codebook else layer.weight_bits
