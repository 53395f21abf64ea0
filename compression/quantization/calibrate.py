"""Quantization parameters of layers' inputs for many bit-widths at once, without exporting the model: for simulations only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

from ...core.batch import device_of_model
from ...core.hooks import removed_after
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.quantization_scheme import Scheme
from ...workloads.workload import MapDataset
from ..batches import CALIBRATION_BATCH, input_batches
from .quantize import activation_spec


@torch.no_grad()
def input_grids(
    model: nn.Module, layers: Collection[str], bits: Collection[int], calibration: MapDataset, scheme: Scheme
) -> dict[tuple[str, int], QuantParams]:
    """(layer, bits) -> quantization parameters of the layer's input, calibrated on the float model as `quantize` would for these bits alone."""
    observers = {(name, width): _observer(width, scheme) for name in layers for width in bits}

    def watch(name: str):
        return lambda _module, inputs: [observers[name, width](inputs[0]) for width in bits] and None

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    with removed_after(hooks):
        for batch in input_batches(calibration, min(CALIBRATION_BATCH, len(calibration)), device_of_model(model)):
            model(batch)
    return {key: _grid(observer, key[1]) for key, observer in observers.items()}


def _observer(bits: int, scheme: Scheme) -> HistogramObserver | MinMaxObserver:
    spec = activation_spec(bits, scheme)
    make: Any = spec.observer_or_fake_quant_ctr
    return make(dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max, qscheme=spec.qscheme)


def _grid(observer: HistogramObserver | MinMaxObserver, bits: int) -> QuantParams:
    scale, zero_point = observer.calculate_qparams()
    return QuantParams(np.array(scale.item(), np.float32), np.array(zero_point.item(), np.uint8), 0, 2**bits - 1)
