"""Bias correction: biases absorb the mean error that quantization adds to each channel.

Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2, with
means over calibration data. Layers are corrected in the order they run, each on the inputs that the already corrected layers
before it produce.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...core.batch import Batch, device_of_model
from ...spaces.models.layers import WeightedLayer, layer_at
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.policy import Policy
from ...workloads.workload import MapDataset
from .fake_quantize import fake_quantized
from .layer_runs import calibration_inputs, in_execution_order, inputs_and_outputs


@torch.no_grad()
def correct_biases(model: nn.Module, policy: Policy, grids: Mapping[str, QuantParams], calibration: MapDataset) -> None:
    """Add to every bias the mean that quantization takes from its channel, in place; weights stay as they are.

    Args:
        model: float32, batch-norm folded; layers without a bias get one.
        grids: layer -> quantization parameters of its input.
    """
    original, inputs = copy.deepcopy(model), calibration_inputs(calibration, device_of_model(model))
    names = in_execution_order(original, inputs, set(policy.layers))
    weights = {name: layer_at(model, name).weight.detach().clone() for name in names}
    biases = {name: _bias(layer_at(model, name)) for name in names}
    with fake_quantized(model, policy, grids):
        for name in names:
            expected, found = (_channel_means(network, name, inputs) for network in (original, model))
            biases[name].add_(expected - found)
    for name, weight in weights.items():
        layer_at(model, name).weight.copy_(weight)


def _bias(layer: WeightedLayer) -> Tensor:
    """The bias of `layer`, which gets one of zeros where it has none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    return layer.bias


def _channel_means(model: nn.Module, name: str, inputs: Sequence[Batch]) -> Tensor:
    _, outputs = inputs_and_outputs(model, name, inputs)
    axis = outputs.ndim - 1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    return outputs.mean([dimension for dimension in range(outputs.ndim) if dimension != axis])
