"""The ONNX file a candidate becomes: its nodes, its constants, its size, and what cannot be lowered."""

import re
from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.errors import LoweringError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.onnx.graph_nodes import nodes_of_layers
from slimfront.hardware_profiles.runtimes.onnx.lowering import lower
from slimfront.hardware_profiles.runtimes.onnx.options import LoweringOptions
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Candidate, Quantization, QuantizedWeight, QuantParams
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import Scheme
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def everywhere(model: nn.Module, *bits: int) -> dict[str, LayerPolicy]:
    return {layer.name: LayerPolicy(*bits) for layer in find_layers(model, torch.zeros(1, *model.shape))}


@pytest.fixture
def lowered(tmp_path):
    """(candidate, batch) -> the checked ONNX model that was written."""

    def make(candidate: Candidate, batch: int = 1) -> onnx.ModelProto:
        path = lower(candidate, torch.zeros(1, *candidate.model.shape), batch, tmp_path / "model.onnx")
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        return model

    return make


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operations(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("bits", [(32, 32), (16, 32), (16, 16), (8, 8), (4, 6), (2, 32), (32, 8)], ids=str)
def test_every_network_lowers_to_a_valid_file(network, bits, candidate, lowered):
    model = lowered(candidate(network, everywhere(network, *bits)), batch=3)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("input", "output")
    assert (shape(given), shape(made)) == ([3, *network.shape], [3, 4])
    assert model.opset_import[0].version == 17


def test_nothing_in_the_file_is_unread(network, candidate, lowered):
    for bits in ((32, 32), (8, 8), (32, 4), (16, 4), (16, 16)):
        model = lowered(candidate(network, everywhere(network, *bits)))
        read = {name for node in model.graph.node for name in node.input}
        assert set(constants(model)) <= read


def test_weights_are_stored_as_eight_bit_integers_of_the_candidate(make_network, candidate, lowered):
    network = make_network("mobile")
    made = candidate(network, everywhere(network, 4, 8))
    model = lowered(made)
    stored = constants(model)
    for name, weight in made.quantization.weights.items():
        own = f"{nodes_of_layers(model.graph, [name])[name][0].name}/weight"
        assert stored[f"{own}.q"].dtype == np.int8
        np.testing.assert_array_equal(stored[f"{own}.q"], weight.integers)
        np.testing.assert_array_equal(stored[f"{own}.scale"], weight.grid.scale)
        assert np.abs(stored[f"{own}.q"]).max() == 7
        assert not stored[f"{own}.zero_point"].any()


def test_a_linear_layer_over_tokens_is_stored_transposed(make_network, candidate, lowered):
    network = make_network("tokens")
    made = candidate(network, everywhere(network, 8, 8))
    model = lowered(made)
    node = nodes_of_layers(model.graph, ["embed"])["embed"][0]
    (dequantize,) = [other for other in model.graph.node if node.input[1] in other.output]
    assert node.op_type == "MatMul"
    assert dequantize.attribute[0].i == 1  # the axis of the output channels
    np.testing.assert_array_equal(constants(model)[dequantize.input[0]], made.quantization.weights["embed"].integers.T)


def test_eight_bit_weights_shrink_the_file_about_four_times(make_network, candidate, tmp_path):
    torch.manual_seed(0)
    wide = make_network("residual").__class__(width=96).eval()
    sizes = {}
    for bits in (32, 16, 8, 4):
        path = lower(
            candidate(wide, everywhere(wide, bits, 32)), torch.zeros(1, *wide.shape), 1, tmp_path / f"{bits}.onnx"
        )
        sizes[bits] = path.stat().st_size
    weights = sum(layer.weights for layer in find_layers(wide, torch.zeros(1, *wide.shape)))
    assert sizes[32] == pytest.approx(4 * weights, rel=0.02)
    assert sizes[16] == pytest.approx(2 * weights, rel=0.03)
    assert sizes[8] == pytest.approx(weights, rel=0.05)
    assert 3.7 < sizes[32] / sizes[8] < 4
    assert sizes[4] == pytest.approx(sizes[8], rel=0.01)  # eight-bit containers


@pytest.mark.parametrize("name", ["residual", "tokens", "heads"])
def test_onnx_runtime_runs_integer_weights_of_float_layers_as_it_runs_the_float_model(
    name, make_network, candidate, tmp_path
):
    network, runtime, target = make_network(name), get_runtime("onnxruntime"), load_target("cpu-onnxruntime")
    executed = []
    for layers in ({}, everywhere(network, 8, 32)):
        path = runtime.lower(
            candidate(network, layers), torch.zeros(1, *network.shape), target, tmp_path / "m.onnx"
        ).path
        session = runtime.load(path, target)
        executed.append(Counter(node.op_type for node in session._optimised_nodes()))
    assert executed[0] == executed[1]
    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert stored <= {tensor for node in onnx.load(path).graph.node for tensor in node.input}


def test_half_weights_are_the_rounded_ones_and_cast_back(make_network, candidate, lowered):
    network = make_network("signal")
    model = lowered(candidate(network, {"conv2": LayerPolicy(16, 32)}))
    (cast,) = operations(model, "Cast")
    stored = constants(model)[cast.input[0]]
    assert stored.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(stored.astype(np.float32), network.conv2.weight.detach().bfloat16().float().numpy())
    assert nodes_of_layers(model.graph, ["conv2"])["conv2"][0].input[1] == cast.output[0]


class Shared(nn.Module):
    """Three layers read one tensor."""

    shape = (4, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1)
        self.second = nn.Conv2d(4, 8, 1)
        self.third = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) * self.second(x) * self.third(x)).mean((2, 3))[:, :4]


def test_readers_of_one_tensor_share_its_pair_where_their_grids_agree(candidate, lowered):
    model = Shared().eval()
    same = lowered(candidate(model, everywhere(model, 8, 8)))
    assert len(operations(same, "QuantizeLinear")) == 1
    sources = {nodes_of_layers(same.graph, [name])[name][0].input[0] for name in ("first", "second", "third")}
    assert len(sources) == 1
    layers = {"first": LayerPolicy(8, 8), "second": LayerPolicy(8, 4), "third": LayerPolicy(8, 8)}
    mixed = lowered(candidate(model, layers))
    assert len(operations(mixed, "QuantizeLinear")) == 2
    inputs = {name: nodes_of_layers(mixed.graph, [name])[name][0].input[0] for name in layers}
    assert inputs["first"] == inputs["third"] != inputs["second"]


def test_a_narrow_grid_is_clipped_before_its_eight_bit_container(candidate, lowered):
    model = Shared().eval()
    made = candidate(model, {"first": LayerPolicy(8, 4)})
    grid = made.quantization.inputs["first"]
    written = lowered(made)
    (clip,), stored = operations(written, "Clip"), constants(written)
    low, high = (float(stored[name]) for name in clip.input[1:])
    assert low == pytest.approx(-int(grid.zero_point) * float(grid.scale))
    assert high == pytest.approx((15 - int(grid.zero_point)) * float(grid.scale))
    (quantize,) = operations(written, "QuantizeLinear")
    assert quantize.input[0] == clip.output[0]


def test_a_grid_around_zero_can_be_written_on_signed_integers(make_network, candidate, tmp_path):
    model = make_network("residual")
    made = candidate(model, everywhere(model, 8, 8), Scheme(activations="signed"))
    path, inputs = tmp_path / "model.onnx", torch.randn(4, *model.shape).numpy()
    plain, found = SessionOptions(), []
    plain.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL  # what the file says, pair by pair
    for signed in (False, True):
        lower(made, torch.zeros(1, *model.shape), 4, path, LoweringOptions(signed_grids=signed))
        stored = constants(onnx.load(path))
        zeros = {
            (str(values.dtype), int(values)) for name, values in stored.items() if re.search(r"grid\d+\.zero", name)
        }
        found.append((zeros, InferenceSession(path, plain).run(None, {"input": inputs})[0]))
    (unsigned, expected), (signed, outputs) = found
    assert (unsigned, signed) == ({("uint8", 0), ("uint8", 128)}, {("uint8", 0), ("int8", 0)})
    np.testing.assert_array_equal(outputs, expected)


def test_a_float_weight_can_read_its_grid_through_a_bound(candidate, tmp_path):
    model = Shared().eval()
    made = candidate(model, {"first": LayerPolicy(32, 8), "second": LayerPolicy(8, 8)})
    path = lower(
        made, torch.zeros(1, *model.shape), 1, tmp_path / "bounded.onnx", LoweringOptions(bound_float_layers=True)
    )
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    (clip,) = operations(written, "Clip")
    assert nodes_of_layers(written.graph, ["first"])["first"][0].input[0] == clip.output[0]
    assert "DequantizeLinear" in nodes_of_layers(written.graph, ["second"])["second"][0].input[0]


def test_only_residual_additions_get_pairs(make_network, candidate, lowered):
    network = make_network("additions")
    made = candidate(network, everywhere(network, 8, 8))
    assert set(made.quantization.additions) == {("", 0, 0), ("", 0, 1)}
    model = lowered(made)
    producers = {output: node for node in model.graph.node for output in node.output}

    def sources(node: onnx.NodeProto) -> list[str]:
        """What is added, looked at behind a pair."""
        kinds = [producers[name].op_type if name in producers else name for name in node.input]
        if kinds != ["DequantizeLinear", "DequantizeLinear"]:
            return kinds
        return [producers[producers[producers[name].input[0]].input[0]].name for name in node.input]

    assert len(operations(model, "Add")) == 6  # one of them inside GELU
    assert [sources(node) for node in operations(model, "Add")].count(["/conv2/Conv", "/conv3/Conv"]) == 1
    # conv2 and conv3 read one tensor; two operands are added.
    assert len(operations(model, "QuantizeLinear")) == 3 + 2


class Alike(nn.Module):
    """Two layers of equal weights, which the exporter would store once, and one that shares its weight."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.load_state_dict(self.first.state_dict())
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.tied(self.second(self.first(x).relu()).relu()).relu())


def test_layers_of_equal_weights_are_lowered_each_by_itself(candidate, lowered):
    model = Alike().eval()
    layers = {"first": LayerPolicy(8, 8), "second": LayerPolicy(4, 32), "tied": LayerPolicy(16, 32)}
    stored = constants(lowered(candidate(model, layers)))
    assert {name: value.dtype for name, value in stored.items() if value.ndim == 2} == {
        "/first/Gemm/weight.q": np.int8,
        "/second/Gemm/weight.q": np.int8,
        "/tied/Gemm/weight.bf16": ml_dtypes.bfloat16,
        "/last/Gemm/weight": np.float32,
    }
    assert np.abs(stored["/first/Gemm/weight.q"]).max() == 127
    assert np.abs(stored["/second/Gemm/weight.q"]).max() == 7


class Zeros(nn.Module):
    """Layers of tokens whose biases are all zeros, as those of an untrained transformer; the exporter stores them once."""

    shape = (3, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        for layer in (self.first, self.second, self.last):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def test_equal_biases_of_token_layers_are_found_in_bfloat16(candidate, lowered):
    stored = constants(lowered(candidate(Zeros().eval(), {name: LayerPolicy(16, 32) for name in ("second", "last")})))
    assert {name for name in stored if name.endswith("bias.bf16")} == {"second.bias.bf16", "last.bias.bf16"}


def test_lowering_leaves_the_model_as_it_was(make_network, candidate, lowered):
    network = make_network("residual")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lowered(candidate(network, everywhere(network, 4, 8)))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_same_candidate_gives_the_same_bytes(make_network, candidate, tmp_path):
    files = []
    for index in range(2):
        network = make_network("residual")
        made = candidate(network, everywhere(network, 4, 8))
        files.append(lower(made, torch.zeros(1, *network.shape), 1, tmp_path / f"{index}.onnx").read_bytes())
    assert files[0] == files[1]


GRID = QuantParams(np.float32(0.1), np.uint8(0), 0, 255)


def weight(integers: np.ndarray) -> QuantizedWeight:
    scale = np.full(len(integers), 0.01, np.float32)
    return QuantizedWeight(
        integers.astype(np.int8), QuantParams(scale, np.zeros(len(integers), np.int8), -127, 127), None
    )


class Fft(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(self.first(x)[:, :5, 0]).real


@pytest.mark.parametrize(
    ("model", "quantization", "problem"),
    [
        (Shared(), Quantization(inputs={"fourth": GRID}), r"^layer fourth has 0 weights in the exported graph instead of one$"),
        (Shared(), Quantization(additions={("", 0, 0): GRID}), r"^addition 0 of the model is not in the exported graph$"),
        (Shared(), Quantization(additions={("first", 0, 0): GRID}), r"^addition 0 of first is not in the exported graph$"),
        (Shared(), Quantization({"first": weight(np.zeros((4, 8, 1, 1)))}), r"^/first/Conv: weight of shape \[8, 4, 1, 1\] where \[4, 8, 1, 1\] was"),
        (Shared(), Quantization({"first": weight(np.full((8, 4, 1, 1), 99))}), r"^/first/Conv: the exported weight is not the one that was quantized$"),
        (Fft(), Quantization(), r"^ONNX export failed: "),
    ],
    ids=["no layer", "no addition", "no addition in a module", "wrong shape", "other weight", "no such operation"],
)  # fmt: skip
def test_what_cannot_be_lowered_is_reported_in_one_line(model, quantization, problem, lowered):
    with pytest.raises(LoweringError, match=problem) as caught:
        lowered(Candidate(Policy(), model.eval(), quantization))
    assert "\n" not in str(caught.value)


class Normed(nn.Module):
    shape = (5, 8)

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), norm, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"elementwise_affine": False}], ids=str)
def test_a_root_mean_square_norm_is_written_in_operators_of_the_opset(options, lowered):
    torch.manual_seed(0)
    model, inputs = Normed(nn.RMSNorm(8, **options)).eval(), torch.randn(1, 5, 8)
    session = onnxruntime.InferenceSession(lowered(Candidate(Policy(), model, Quantization())).SerializeToString())
    (found,) = session.run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(found, model(inputs).detach().numpy(), atol=1e-6)


class ConvolvedTwice(nn.Module):
    """One convolution before two batch-norms, under two names."""

    shape = (4, 6, 6)

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.conv = self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) if normed else nn.Identity() for _ in range(2))
        self.fc = nn.Linear(4, 3)
        for norm in self.norms if normed else ():
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.conv(x)).relu()
        return self.fc(self.norms[1](self.again(x)).mean((2, 3)))


@pytest.mark.parametrize("bits", [None, (8, 8), (8, 32), (16, 16)], ids=str)
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
def test_a_convolution_that_runs_twice_keeps_what_follows_each_run_apart(normed, bits, tmp_path):
    torch.manual_seed(0)
    model, inputs = ConvolvedTwice(normed).eval(), torch.randn(8, 4, 6, 6)
    policy = Policy(layers=everywhere(model, *bits) if bits else {})
    assert not bits or policy.layers.keys() == {"conv", "fc"}, "one decision for both names"
    grids = quantize(model, inputs[:1], policy, TensorDataset(inputs, torch.zeros(8)))
    target = load_target("cpu-onnxruntime")
    artifact = get_runtime("onnxruntime").lower(
        Candidate(policy, model, grids), inputs[:1], target, tmp_path / "m.onnx"
    )
    (found,) = get_runtime("onnxruntime").load(artifact.path, target).run({"input": inputs[:1].numpy()}).values()
    expected = model(inputs[:1]).detach().numpy()
    assert np.abs(found - expected).max() < (0.02 if bits else 1e-5) * np.abs(expected).max()


class Started(nn.Module):
    """Adds where a sequence begins, which is found by differences of neighbours as decoders find it."""

    shape = (5, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.diff(x, prepend=x[:, :1], dim=1) + torch.diff(x, n=2, dim=-1).sum(-1, keepdim=True)


def test_differences_of_neighbours_are_exported(lowered):
    model, inputs = Started().eval(), torch.randn(1, 5, 8)
    session = onnxruntime.InferenceSession(lowered(Candidate(Policy(), model, Quantization())).SerializeToString())
    (found,) = session.run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(found, model(inputs).detach().numpy(), atol=1e-5)
