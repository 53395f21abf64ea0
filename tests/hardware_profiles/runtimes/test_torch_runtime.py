"""What is particular to torch: a bundle's loader, and code that is compiled ahead of time."""

import shutil

import numpy as np
import pytest
import torch
from slimfront.core.threads import torch_threads
from slimfront.hardware_profiles.bench.bench import Bench, bench_cores
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.torch.lowering import _program
from slimfront.hardware_profiles.runtimes.torch.runtime import TorchRuntime
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.policy import LayerPolicy
from slimfront.studies.bundles.standalone import load_torch
from torch import fx, nn


def everywhere(model, *bits):
    return {layer.name: LayerPolicy(*bits) for layer in find_layers(model, torch.zeros(1, *model.shape))}


def lowered(made, name, tmp_path):
    target = load_target(name).model_copy(update={"batch": 4})
    artifact = TorchRuntime().lower(made, torch.zeros(1, *made.model.shape), target, tmp_path / "model.pt2")
    return artifact, target


def test_a_bundles_loader_computes_what_was_measured(make_network, candidate, inputs, tmp_path):
    model = make_network("residual")
    artifact, target = lowered(candidate(model, everywhere(model, 8, 8)), "cpu-torch", tmp_path)
    samples = inputs(model.shape, 4, 1).numpy()
    expected = TorchRuntime().load(artifact.path, target).run({"input": samples})["output"]
    with torch.enable_grad():
        np.testing.assert_array_equal(load_torch(str(artifact.path), 1)({"input": samples})["output"], expected)
    with torch_threads(2), Bench(target, artifact.path, {"input": samples}, bench_cores(1)) as bench:
        assert set(bench.executed_precisions(artifact.path).values()) == {"f32"}
        assert torch.get_num_threads() == 2  # those that the process trains on


def test_integer_weights_replace_the_float_ones_in_the_file(make_network, candidate, tmp_path):
    wide = make_network("residual").__class__(width=96).eval()
    sizes = [
        lowered(candidate(wide, everywhere(wide, bits, 32)), "cpu-torch", tmp_path)[0].bytes for bits in (32, 16, 8)
    ]
    weights = sum(layer.weights for layer in find_layers(wide, torch.zeros(1, *wide.shape)))
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, rel=0.05)
    assert sizes[0] - sizes[2] == pytest.approx(3 * weights, rel=0.05)


def test_lowering_for_another_device_leaves_the_model_where_it_is(make_network, candidate, monkeypatch):
    model, moved = make_network("residual"), []
    made = candidate(model, everywhere(model, 8, 32))

    def to(module: fx.GraphModule, device: str) -> fx.GraphModule:
        moved.extend([*module.parameters(), *module.buffers()])
        return nn.Module.to(module, device)

    monkeypatch.setattr(fx.GraphModule, "to", to)
    program = _program(made, torch.zeros(1, *model.shape), "meta")  # a GPU is not there everywhere
    assert {weight.device.type for weight in program.state_dict.values()} == {"meta"}
    ours = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert moved
    assert not ours.intersection(tensor.data_ptr() for tensor in moved)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor compiles with g++, which is not here")
def test_compiled_layers_run_in_integers(make_network, candidate, inputs, tmp_path):
    model = make_network("residual")
    artifact, target = lowered(candidate(model, everywhere(model, 8, 8)), "cpu-torch-compile", tmp_path)
    samples = inputs(model.shape, 4, 1)
    session = TorchRuntime().load(artifact.path, target)
    with torch.no_grad():
        expected = model(samples).numpy()
    assert np.abs(session.run({"input": samples.numpy()})["output"] - expected).max() < 0.03 * np.ptp(expected)
    assert {precision for layer, precision in session.executed_precisions().items() if layer != "fc"} == {"i8"}
