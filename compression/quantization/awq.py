"""AWQ: inputs that are large are given larger weights, which rounding then changes less, and are themselves divided by as much.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", arXiv:2306.00978,
section 3.2. The division moves into what makes the inputs, a layer normalisation or a linear layer, so that no output of the float
model changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...core.batch import Batch, device_of_model, repeated
from ...spaces.models.exported_graph import module_path
from ...spaces.models.layers import layer_at
from ...spaces.policies.policy import Policy
from ...workloads.workload import MapDataset
from .captured import captured, capturing
from .equalize import layer_pairs
from .gptq import hessian
from .layer_runs import calibration_inputs, inputs_and_outputs
from .weight_grids import weight_grid

LINEAR, NORM = torch.ops.aten.linear.default, torch.ops.aten.layer_norm.default
SMALLEST = 1e-5
"""No magnitude counts as less."""

EXPONENTS = 20
"""How many powers of the inputs' magnitudes are tried as scales, evenly spaced from 0 to 1 (the paper's equation 5)."""


@torch.no_grad()
def scale_by_activations(
    model: nn.Module, example_input: Batch, policy: Policy, calibration: MapDataset
) -> dict[str, float]:
    """Scale the inputs of quantized linear layers in `policy`, in place; returns {what makes the inputs: chosen exponent}.

    An exponent of 0 scales nothing: it is kept where no other rounds better.

    Args:
        model: float32, eval mode, batch-norm folded.

    Raises:
        CompressionError: torch.export cannot take the model.
    """
    inputs, chosen = calibration_inputs(calibration, device_of_model(model)), {}
    for maker, readers in _scalable(model, example_input):
        quantized = [name for name in readers if policy.layer(name).has_weight_grid]
        if not quantized:
            continue
        read, _ = inputs_and_outputs(model, quantized[0], inputs)
        chosen[maker], scales = _best(model, policy, quantized, read)
        _scale(model.get_submodule(maker), readers, model, scales)
    return chosen


def _scalable(model: nn.Module, example_input: Batch) -> list[tuple[str, list[str]]]:
    """(module, the linear layers that alone read its output), in the order they run."""
    with capturing():
        graph = captured(model, repeated(example_input, 2)).graph
    runs = Counter(module_path(node) for node in graph.nodes if node.target in (NORM, LINEAR))
    found = [*_read_norms(graph)]
    found += [(first, [second]) for first, second in layer_pairs(graph) if _are_alike(model, first, second)]
    order = {module_path(node): place for place, node in enumerate(graph.nodes)}
    once = [pair for pair in found if all(runs[path] == 1 for path in (pair[0], *pair[1]))]
    return sorted(once, key=lambda pair: order[pair[0]])


def _read_norms(graph: fx.Graph) -> Iterator[tuple[str, list[str]]]:
    """(normalisation with a weight, the linear layers that alone read it)."""
    for norm in graph.find_nodes(op="call_function", target=NORM):
        has_weight = len(norm.args) > 2 and norm.args[2] is not None
        if has_weight and (readers := _linear_readers(norm)):
            yield module_path(norm), readers


def _linear_readers(norm: fx.Node) -> list[str]:
    """The linear layers that read what `norm` made; none where anything else reads it too."""
    return [module_path(node) for node in norm.users] if all(node.target is LINEAR for node in norm.users) else []


def _are_alike(model: nn.Module, first: str, second: str) -> bool:
    """Whether both layers are linear, the first one's outputs the second one's inputs."""
    layers = [model.get_submodule(name) for name in (first, second)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return len(linear) == len(layers) and linear[0].out_features == linear[1].in_features


def _best(model: nn.Module, policy: Policy, layers: Sequence[str], read: Tensor) -> tuple[float, Tensor]:
    """The exponent that leaves the least error in the outputs of `layers`, and the scale of each of their inputs [in]."""
    magnitude, second = read.abs().flatten(0, -2).mean(0).clamp_min(SMALLEST), hessian(read).to(read.dtype)
    grids = {name: weight_grid(policy.layer(name), policy.scheme) for name in layers}

    def scales(exponent: float) -> Tensor:
        powers = magnitude**exponent
        return powers / (powers.max() * powers.min()).sqrt()

    def error(exponent: float) -> float:
        scale, total = scales(exponent), 0.0
        for name, grid in grids.items():
            weight = layer_at(model, name).weight
            change = grid(weight * scale) / scale - weight
            total += float(((change @ second) * change).sum())
        return total

    best = min((step / EXPONENTS for step in range(EXPONENTS)), key=error)
    return best, scales(best)


def _scale(maker: Any, readers: Sequence[str], model: nn.Module, scales: Tensor) -> None:
    """Divide what `maker` makes by `scales` [channels], and multiply what reads it."""
    maker.weight.div_(scales.reshape(-1, *[1] * (maker.weight.ndim - 1)))
    if maker.bias is not None:
        maker.bias.div_(scales)
    for name in readers:
        layer_at(model, name).weight.mul_(scales)
