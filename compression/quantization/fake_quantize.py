"""Fake quantization: a float model that computes on the quantization grids of its artifact, and can be trained.

The gradient of rounding is the identity where it does not saturate (Bengio et al. 2013, arXiv:1308.3432; Jacob et al.
2018, arXiv:1712.05877). Weights follow their own range at every step, as post-training quantization reads it from them;
the grids of activations stay as they were calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...core.hooks import removed_after
from ...spaces.models.layers import layer_at
from ...spaces.models.recurrent import matrix_names
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.layer_policy import FULL_PRECISION
from ...spaces.policies.policy import LayerPolicy, Policy
from ...spaces.policies.quantization_scheme import Scheme
from ...spaces.policies.recurrent_weights import DYNAMIC_INT8, INT8_BITS
from .bfloat16 import BFloat16Weight, rounded_input, rounded_output
from .codebooks import SharedValues
from .weight_grids import SymmetricWeight, embedding, recurrent_layer, weight_grid

PARAMETRIZED = "parametrizations.weight"
"""The path in a layer of what `torch.nn.utils.parametrize` keeps of its weight."""


@contextmanager
def fake_quantized(model: nn.Module, policy: Policy, inputs: Mapping[str, QuantParams]) -> Iterator[None]:
    """Let `model` compute on the weight bits of `policy` and on the grids `inputs` (layer -> grid of what it reads).

    Afterwards every quantized weight holds numbers of its grid, on which post-training quantization finds the same grid.
    Biases are left in float32: those of layers in bfloat16 are rounded once, when the candidate is made.
    """
    with (
        _fake_quantized_weights(model, policy),
        rounded_activations(model, policy, inputs),
        _fake_quantized_recurrences(model, policy),
        _fake_quantized_embeddings(model, policy),
    ):
        yield


@contextmanager
def _fake_quantized_embeddings(model: nn.Module, policy: Policy) -> Iterator[None]:
    """Let embeddings give rounded rows, and leave them with such; the rest of a table, whose rows have scales of their own, is not read."""
    tables = {name: (embedding(model, name), SymmetricWeight(bits)) for name, bits in policy.embeddings.items()}
    with removed_after(module.register_forward_hook(_rounded_rows(grid)) for module, grid in tables.values()):
        yield
        with torch.no_grad():
            for module, grid in tables.values():
                module.weight.copy_(grid(module.weight))


def _rounded_rows(grid: SymmetricWeight) -> Callable[..., Tensor]:
    """A forward hook that rounds each row that an embedding gives."""
    return lambda _module, _inputs, rows: grid(rows.flatten(0, -2)).view_as(rows)


@contextmanager
def _fake_quantized_recurrences(model: nn.Module, policy: Policy) -> Iterator[None]:
    """Let recurrent layers compute with rounded matrices, and leave them with such."""
    grid = SymmetricWeight(INT8_BITS)
    layers = {name: recurrent_layer(model, name) for name in policy.recurrent}
    hooks = [
        hook
        for layer in layers.values()
        for hook in (layer.register_forward_pre_hook(with_other_matrices(grid)),
                     layer.register_forward_hook(with_own_matrices))
    ]  # fmt: skip
    with removed_after(hooks):
        yield
        with torch.no_grad():
            for layer in layers.values():
                for key in matrix_names(layer):
                    layer.get_parameter(key).copy_(grid(layer.get_parameter(key)))


def with_other_matrices(change: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    """A forward pre-hook that has a recurrent layer compute with changed matrices; `with_own_matrices` is to follow."""

    def hook(layer: Any, _inputs: object) -> None:
        named = [getattr(layer, key) for key in layer._flat_weights_names]
        layer._flat_weights = [change(weight) if weight.ndim == 2 else weight for weight in named]

    return hook


def with_own_matrices(layer: Any, *_: object) -> None:
    """A forward hook that gives a recurrent layer its own matrices back."""
    layer._flat_weights = [getattr(layer, key) for key in layer._flat_weights_names]


@contextmanager
def _fake_quantized_weights(model: nn.Module, policy: Policy) -> Iterator[None]:
    weights = [name for name, layer in policy.layers.items() if layer.weight_bits < FULL_PRECISION]
    for name in weights:
        module = layer_at(model, name)
        rounding = _rounding(policy.layer(name), policy.scheme, module.weight)
        parametrize.register_parametrization(module, "weight", rounding, unsafe=True)
    try:
        yield
    finally:
        for name in weights:
            parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=True)


@contextmanager
def rounded_activations(model: nn.Module, policy: Policy, inputs: Mapping[str, QuantParams]) -> Iterator[None]:
    """Have layers of `model` read what they read rounded: on the grids `inputs` (layer -> grid), on the range of each tensor, or
    in bfloat16, as their policies say."""
    roundings = {name: _on_grid(grid) for name, grid in inputs.items()}
    roundings |= dict.fromkeys(_with_ranges_of_their_own(policy), _on_own_range)
    halves = [name for name, layer in policy.layers.items() if layer.is_bfloat16]
    roundings |= dict.fromkeys(halves, rounded_input)
    hooks = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in roundings.items()]
    hooks += [model.get_submodule(name).register_forward_hook(rounded_output) for name in halves]
    with removed_after(hooks):
        yield


def _with_ranges_of_their_own(policy: Policy) -> list[str]:
    """Layers that quantize what they read by its range at run time; of a recurrent one the sequence, not the state of each step."""
    recurrent = [name for name, choice in policy.recurrent.items() if choice == DYNAMIC_INT8]
    return [*(name for name, layer in policy.layers.items() if layer.is_dynamic), *recurrent]


def _rounding(layer: LayerPolicy, scheme: Scheme, weight: Tensor) -> nn.Module:
    if layer.has_codebook:
        return SharedValues(weight, layer)
    if layer.has_bfloat16_weight:
        return BFloat16Weight()
    return weight_grid(layer, scheme)


def on_grid(tensor: Tensor, grid: QuantParams) -> Tensor:
    """`tensor` rounded to the numbers of a grid of whole tensors."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return torch.fake_quantize_per_tensor_affine(tensor, scale, zero_point, grid.low, grid.high)


def _on_grid(grid: QuantParams):
    return lambda _module, inputs: (on_grid(inputs[0], grid), *inputs[1:])


def _on_own_range(_module: nn.Module, inputs: tuple) -> tuple:
    """Quantize the input of a dynamically quantized layer to the 8-bit range of this very tensor, as ONNX's DynamicQuantizeLinear does."""
    scale, zero_point = dynamic_grid(inputs[0].detach())
    return torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero_point, 0, 255), *inputs[1:]


def dynamic_grid(tensor: Tensor) -> tuple[float, int]:
    """Scale and zero point of the uint8 grid that spans zero and all of `tensor`.

    https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
    """
    low, high = min(0.0, float(tensor.min())), max(0.0, float(tensor.max()))
    scale = max((high - low) / 255, float(torch.finfo(torch.float32).tiny))
    return scale, round(-low / scale)
