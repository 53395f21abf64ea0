"""Recurrent networks and Transformers on every runtime: integers where they were asked for, outputs near the float model's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.compression.quantization.quantize import quantize
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.workloads.builtin.digits_rnn import GRU, LSTM, DigitsRNN
from slimfront.workloads.builtin.digits_vit import DigitsViT
from torch.utils.data import TensorDataset

FAMILIES = {
    "gru": lambda: DigitsRNN(GRU, hidden=16),
    "lstm": lambda: DigitsRNN(LSTM, hidden=16),
    "vit": lambda: DigitsViT(width=32, depth=1, heads=2, hidden=64),
}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [(8, 8), (8, 32)], ids=["int8", "weight-only"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_quantized(
    family: str, bits: tuple[int, int], runtime: str, tmp_path: Path, needs_exact_products: Callable[[str], None]
):
    if bits == (8, 8):
        needs_exact_products(runtime)
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    images = torch.randn(50, 1, 16, 16)
    data = TensorDataset(images, torch.zeros(50, dtype=torch.int64))
    layers = [layer.name for layer in find_layers(model, images[:1])]
    policy = Policy(layers={name: LayerPolicy(*bits) for name in layers})
    candidate = Candidate(policy, model, quantize(model, images[:1], policy, data))
    target = load_target(f"cpu-{runtime}")
    path = tmp_path / f"model{get_runtime(runtime).suffix}"
    artifact = get_runtime(runtime).lower(candidate, images[:1], target, path)
    session = get_runtime(runtime).load(artifact.path, target)
    outputs = np.concatenate([session.run({"input": image.numpy()})["output"].copy() for image in images.split(1)])
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.abs(outputs - expected).max() < 0.06 * np.ptp(expected)
    if bits == (8, 8) and runtime != "torch":  # which only simulates grids when it runs eagerly
        precisions = session.executed_precisions()
        floats = {name for name in layers if precisions.get(name) != "i8"}
        # ONNX Runtime has a kernel for a convolution on integers only where its output is on a grid too.
        assert floats <= ({"patches"} if runtime == "onnxruntime" else set())
