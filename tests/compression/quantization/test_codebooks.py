"""Weights that share values: codebooks by hand and against scikit-learn's k-means, codes that mean what they say."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from sklearn.cluster import KMeans
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.codebooks import coded, k_means, lloyd, power_of_two
from slimfront.compression.recovery.recover import recover
from slimfront.core.errors import PolicyError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset

CODED = ("power_of_two", "k_means")


def test_powers_of_two_by_hand():
    # The power nearest to 0.7 is 1/2, to 0.8 it is 1; three bits hold zero and three powers of either sign.
    weight = torch.tensor([[0.7, -0.3, 0.19, 0.18], [0.07, -0.06, 0.4, 0.0]])
    assert power_of_two(weight, 3).tolist() == [-0.5, -0.25, -0.125, 0, 0.125, 0.25, 0.5]
    assert power_of_two(weight / 0.7 * 0.8, 3).max() == 1
    found = coded(weight, LayerPolicy(3, codebook="power_of_two"))
    assert found.values().tolist() == [[0.5, -0.25, 0.25, 0.125], [0.125, 0, 0.5, 0]]
    assert found.codes.tolist() == [[3, -2, 2, 1], [1, 0, 3, 0]]


def test_centroids_by_hand():
    weight = torch.tensor([[0.0, 1.0, 1.2, 9.0], [9.4, 4.0, 0.2, 4.4]])
    # Zero is a pruned weight and stays one; 0.2, 1 and 1.2 start nearest to 0.2, 4 and 4.4 to 4.8, 9 and 9.4 to 9.4.
    assert k_means(weight, 2).tolist() == pytest.approx([0, 0.8, 4.2, 9.2])
    found = coded(weight, LayerPolicy(2, codebook="k_means"))
    np.testing.assert_allclose(found.values(), [[0, 0.8, 0.8, 9.2], [9.2, 4.2, 0, 4.2]], rtol=1e-6)


@pytest.mark.parametrize("clusters", [4, 15])
def test_centroids_are_scikit_learns(clusters):
    numbers = torch.randn(3000, generator=torch.Generator().manual_seed(clusters)).double()
    starts = torch.linspace(float(numbers.min()), float(numbers.max()), clusters, dtype=torch.float64)
    own = lloyd(numbers, starts, 30)
    other = KMeans(clusters, init=starts[:, None].numpy(), n_init=1, max_iter=30, tol=0, algorithm="lloyd")
    other.fit(numbers[:, None].numpy())
    np.testing.assert_allclose(own, np.sort(other.cluster_centers_.ravel()), rtol=1e-6, atol=1e-9)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4, 5, 6, 8]), st.sampled_from(CODED), st.floats(0, 1),
    st.sampled_from([(3, 2), (7, 5), (4, 3, 3, 3), (2, 300)]),
)  # fmt: skip
def test_codes_fit_their_bits_keep_zeros_and_are_found_again(seed, bits, codebook, density, shape):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    layer = LayerPolicy(bits, codebook=codebook)
    found = coded(weight, layer)
    assert found.codes.min() >= -(2 ** (bits - 1))
    assert found.codes.max() < 2 ** (bits - 1)
    assert len(found.table) <= 2**bits
    assert (found.values()[weight.numpy() == 0] == 0).all()
    if (found.table == 0).any():
        assert ((found.codes == 0) == (found.values() == 0)).all()
    again = coded(torch.from_numpy(found.values()), layer)
    np.testing.assert_array_equal(again.values(), found.values())


def task() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    model[1].running_var.uniform_(0.5, 2)
    inputs = torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    return Workload(model, data, data, data, data, inputs[:1])


@pytest.mark.parametrize("codebook", CODED)
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_the_artifact_holds_the_values_and_computes_in_float(codebook, name, tmp_path):
    workload, runtime = task(), get_runtime(name)
    policy = Policy(layers={"0": LayerPolicy(3, 8, codebook=codebook), "4": LayerPolicy(2, 8, codebook=codebook)})
    before = workload.model[4].weight.clone()
    candidate = make_candidate(workload.model, workload.example_input, policy, workload.calibration)
    target = load_target(f"cpu-{name}")
    artifact = runtime.lower(candidate, workload.example_input, target, tmp_path / "model.onnx")
    held = [numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.path).graph.initializer]
    values = candidate.quantization.codes["4"].values()
    assert any(array.shape in ((3, 32), (32, 3)) and np.isin(array, values).all() for array in held)
    assert len(np.unique(values)) <= 4
    torch.testing.assert_close(workload.model[4].weight, before)  # the model itself is left alone
    assert set(runtime.load(artifact.path, target).executed_precisions().values()) == {"f32"}


@pytest.mark.parametrize("codebook", CODED)
def test_after_training_on_a_codebook_it_is_found_again(codebook):
    workload = task()
    layer = LayerPolicy(3, 8, 0.5, codebook=codebook)
    recovery = Recovery(2, 0.05, steps=("prune", "quantize", "train"))
    policy = Policy(layers={"4": layer}, recovery=recovery)
    with torch.no_grad():
        workload.model[4].weight[:, ::2] = 0
    before = workload.model[4].weight.clone()
    weight = recover(workload.model, workload, policy, 0, 16)[4].weight.detach()
    assert not torch.equal(weight, before)
    assert (weight[:, ::2] == 0).all()
    assert len(weight.unique()) <= 8
    np.testing.assert_array_equal(coded(weight, layer).values(), weight.numpy())


def test_a_codebook_of_full_precision_decides_nothing():
    assert LayerPolicy(32, 8, codebook="k_means") == LayerPolicy(32, 8)
    with pytest.raises(PolicyError, match=r"codebook must be one of uniform, power_of_two, k_means, not 'fibonacci'"):
        LayerPolicy(4, codebook="fibonacci")
