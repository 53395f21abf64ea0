"""Post-training quantization: grids and integers worked out by hand."""

import copy
import gc

import numpy as np
import pytest
import torch
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.errors import CompressionError
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.candidate import Quantization, QuantizedWeight
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor, fx, nn
from torch.utils.data import TensorDataset


def calibration(shape: tuple[int, ...], count: int = 100, seed: int = 0) -> TensorDataset:
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, torch.zeros(count))


def quantized(model: nn.Module, shape: tuple[int, ...], layers: dict[str, LayerPolicy], **data) -> Quantization:
    return quantize(model.eval(), torch.zeros(1, *shape), Policy(layers=layers), calibration(shape, **data))


def everywhere(model: nn.Module, shape: tuple[int, ...], *bits: int) -> dict[str, LayerPolicy]:
    return {layer.name: LayerPolicy(*bits) for layer in find_layers(model, torch.zeros(1, *shape))}


def real(weight: QuantizedWeight) -> np.ndarray:
    """The numbers that the integers of a weight stand for."""
    scale = weight.grid.scale.reshape(-1, *[1] * (weight.integers.ndim - 1))
    return weight.integers * scale


def trained_norm(norm: nn.Module, seed: int = 0) -> None:
    """Give a batch-norm statistics and parameters that are not the neutral ones."""
    generator = torch.Generator().manual_seed(seed)
    count = norm.num_features
    norm.running_mean.copy_(torch.randn(count, generator=generator))
    norm.running_var.copy_(torch.rand(count, generator=generator) * 3 + 0.5)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.rand(count, generator=generator) * 2 + 0.2)
            norm.bias.copy_(torch.randn(count, generator=generator))


class Residual(nn.Module):
    """Maps [n, 3, 8, 8] to [n, 4]; `conv1` and `conv2` feed one addition, and the addition and `conv3` another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = (x + self.conv2(x)).relu()
        x = x + self.conv3(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("bits", "integers", "steps"),
    [
        (8, [[127, -32, 0], [25, 102, -127], [0, 0, 0]], 127),
        (4, [[7, -2, 0], [1, 6, -7], [0, 0, 0]], 7),
        (2, [[1, 0, 0], [0, 1, -1], [0, 0, 0]], 1),
    ],
)
def test_weights_are_symmetric_per_channel_by_hand(bits, integers, steps):
    # -0.25 of 1 is -31.75 steps of 8 bits, -1.75 of 4, -0.25 of 2; 0.5 and 2 of 2.5 are 25.4 and 101.6 steps of 8 bits,
    # 1.4 and 5.6 of 4, 0.2 and 0.8 of 2.
    model = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -0.25, 0.0], [0.5, 2.0, -2.5], [0.0, 0.0, 0.0]]))
    weight = quantized(model, (3,), {"0": LayerPolicy(weight_bits=bits)}).weights["0"]
    assert weight.integers.dtype == np.int8
    assert weight.integers.tolist() == integers
    np.testing.assert_allclose(weight.grid.scale[:2], [1 / steps, 2.5 / steps], rtol=1e-6)
    assert weight.grid.zero_point.tolist() == [0, 0, 0]
    assert (weight.grid.low, weight.grid.high) == (-steps, steps)
    np.testing.assert_array_equal(weight.bias, model[0].bias.detach())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("layer", "norm", "shape", "affine"),
    [
        (nn.Conv2d, nn.BatchNorm2d, (2, 4, 4), True),
        (nn.Conv2d, nn.BatchNorm2d, (2, 4, 4), False),
        (nn.Conv1d, nn.BatchNorm1d, (2, 4), True),
        (nn.Linear, nn.BatchNorm1d, (2,), True),
    ],
    ids=["2d", "2d without weights", "1d", "linear"],
)
def test_batch_norm_is_folded_into_the_layer_before_it_by_hand(layer, norm, shape, affine, bits, bias):
    kernel = () if layer is nn.Linear else (1,)
    model = nn.Sequential(layer(2, 3, *kernel, bias=bias), norm(3, affine=affine))
    model[1].running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    model[1].running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    gamma, beta = np.ones(3), np.zeros(3)
    if affine:
        gamma, beta = np.array([2.0, -1.0, 0.5]), np.array([0.1, 0.2, -0.3])
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor(gamma))
            model[1].bias.copy_(torch.tensor(beta))
    weight = quantized(model, shape, {"0": LayerPolicy(weight_bits=bits)}).weights["0"]
    factor = gamma / np.sqrt(np.array([4, 0.25, 1]) + 1e-5)
    folded = model[0].weight.detach().double().numpy().reshape(3, 2) * factor.reshape(3, 1)
    shift = model[0].bias.detach().double().numpy() if bias else 0
    np.testing.assert_allclose(weight.bias, beta + (shift - np.array([1, -2, 0.5])) * factor, rtol=1e-5)
    scale = np.abs(folded).max(axis=1) / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(weight.grid.scale, scale, rtol=1e-5)
    np.testing.assert_array_equal(weight.integers.reshape(3, 2), np.rint(folded / scale.reshape(3, 1)))


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_the_activation_grid_covers_the_calibration_range(bits):
    inputs = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 3 - 1  # from -1 to 2
    data = TensorDataset(inputs, torch.zeros(200))
    policy = Policy(layers={"0": LayerPolicy(activation_bits=bits)})
    grid = quantize(nn.Sequential(nn.Linear(3, 2)).eval(), torch.zeros(1, 3), policy, data).inputs["0"]
    assert (grid.low, grid.high) == (0, 2**bits - 1)
    assert grid.zero_point.dtype == np.uint8
    assert grid.scale.dtype == np.float32
    assert grid.low <= int(grid.zero_point) <= grid.high
    lowest, highest = ((end - float(grid.zero_point)) * float(grid.scale) for end in (grid.low, grid.high))
    assert lowest == pytest.approx(-1, abs=float(grid.scale))
    assert highest == pytest.approx(2, abs=float(grid.scale))


def test_zero_lies_on_every_activation_grid():
    inputs = torch.rand(100, 3) + 5
    policy = Policy(layers={"0": LayerPolicy(activation_bits=8)})
    data = TensorDataset(inputs, torch.zeros(100))
    grid = quantize(nn.Sequential(nn.Linear(3, 2)).eval(), torch.zeros(1, 3), policy, data).inputs["0"]
    assert int(grid.zero_point) == 0
    assert float(grid.scale) == pytest.approx(6 / 255, rel=0.02)


@pytest.mark.parametrize(("weight_bits", "high"), [(2, 1), (3, 3), (4, 7), (5, 15), (6, 31), (8, 127)])
def test_integers_stay_on_their_grid_and_use_all_of_it(weight_bits, high):
    layers = everywhere(Residual(), (3, 8, 8), weight_bits, 32)
    weights = quantized(Residual(), (3, 8, 8), layers).weights
    assert set(weights) == {"conv1", "conv2", "conv3", "fc"}
    for name, weight in weights.items():
        assert (weight.grid.low, weight.grid.high) == (-high, high)
        flat = weight.integers.reshape(len(weight.integers), -1)
        assert (np.abs(flat).max(axis=1) == high).all(), name
        original = Residual().get_submodule(name).weight.detach().numpy()
        step = weight.grid.scale.reshape(-1, *[1] * (original.ndim - 1))
        assert (np.abs(real(weight) - original) <= 0.5001 * step).all()


@pytest.mark.parametrize(
    ("bits", "weights", "inputs"),
    [
        ((32, 32), False, False),
        ((16, 32), False, False),
        ((32, 16), False, False),
        ((16, 8), False, True),
        ((32, 4), False, True),
        ((4, 32), True, False),
        ((8, 16), True, False),
        ((8, 8), True, True),
    ],
)
def test_only_what_the_policy_puts_below_sixteen_bits_is_quantized(bits, weights, inputs):
    found = quantized(Residual(), (3, 8, 8), {"conv2": LayerPolicy(*bits)})
    assert list(found.weights) == ["conv2"] * weights
    assert list(found.inputs) == ["conv2"] * inputs
    assert found.additions == {}


def test_every_layer_has_its_own_bits():
    layers = {"conv1": LayerPolicy(4, 8), "conv2": LayerPolicy(8, 6), "fc": LayerPolicy(2, 32)}
    found = quantized(Residual(), (3, 8, 8), layers)
    assert {name: weight.grid.high for name, weight in found.weights.items()} == {"conv1": 7, "conv2": 127, "fc": 1}
    assert {name: grid.high for name, grid in found.inputs.items()} == {"conv1": 255, "conv2": 63}


FIRST, SECOND = {("", 0, 0), ("", 0, 1)}, {("", 1, 0), ("", 1, 1)}


@pytest.mark.parametrize(
    ("on_integers", "additions"),
    [
        (["conv1", "conv2", "conv3", "fc"], FIRST | SECOND),
        (["conv1", "conv2", "conv3"], FIRST | SECOND),
        (["conv1", "conv2"], FIRST),
        (["conv1", "conv3"], set()),
        (["conv2", "conv3"], set()),
    ],
)
def test_residual_operands_get_grids_where_all_that_feeds_them_is_on_integers(on_integers, additions):
    found = quantized(Residual(), (3, 8, 8), dict.fromkeys(on_integers, LayerPolicy(8, 8)))
    assert set(found.additions) == additions
    assert all((grid.low, grid.high) == (0, 255) for grid in found.additions.values())


@pytest.mark.parametrize("bits", [(32, 8), (16, 8), (8, 32)])
def test_a_layer_with_one_float_operand_does_not_compute_on_integers(bits):
    layers = {**dict.fromkeys(["conv1", "conv3"], LayerPolicy(8, 8)), "conv2": LayerPolicy(*bits)}
    assert quantized(Residual(), (3, 8, 8), layers).additions == {}


def test_an_addition_that_scales_an_operand_is_left_alone():
    class Scaled(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            x = torch.add(x, self.conv2(x), alpha=2)
            return self.fc((x + self.conv3(x)).mean((2, 3)))

    found = quantized(Scaled(), (3, 8, 8), everywhere(Scaled(), (3, 8, 8), 8, 8))
    assert set(found.additions) == SECOND


def test_quantizing_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    trained_norm(model[1])
    before = copy.deepcopy(model.state_dict())
    quantized(model, (3, 6, 6), {"0": LayerPolicy(4, 4)})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_model_that_was_quantized_is_not_kept():
    """Libraries keep what they were asked about: each trial of a search would hold a copy of the model for ever."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()

    def graphs() -> int:
        quantized(model, (3, 8, 8), everywhere(model, (3, 8, 8), 8, 8))
        gc.collect()
        return sum(issubclass(type(each), fx.GraphModule) for each in gc.get_objects())

    first = graphs()  # the one that was captured is kept, for all policies
    assert graphs() == first


def test_the_uncompressed_policy_needs_no_export():
    assert quantized(nn.Identity(), (3,), {}) == Quantization()


def test_the_same_calibration_gives_the_same_grids():
    layers = everywhere(Residual(), (3, 8, 8), 4, 8)
    first, second = (quantized(Residual(), (3, 8, 8), layers) for _ in range(2))
    other = quantized(Residual(), (3, 8, 8), layers, seed=1)
    scales = lambda found: [float(grid.scale) for grid in found.inputs.values()]  # noqa: E731
    assert scales(first) == scales(second) != scales(other)


@pytest.mark.parametrize("count", [1, 7, 50, 75])
def test_any_number_of_calibration_samples_will_do(count):
    found = quantized(nn.Sequential(nn.Linear(3, 2)), (3,), {"0": LayerPolicy(8, 8)}, count=count)
    assert float(found.inputs["0"].scale) > 0


class Unweighted(nn.Module):
    """A batch-norm without weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8, affine=False)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(x)).relu())


class NormedTokens(nn.Module):
    """The linear layer maps the last dimension, the batch-norm scales the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(x)).relu())


class ReadTwice(nn.Module):
    """A pre-activation block: the convolution is read by its batch-norm and, raw, by the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return (x + self.conv2(self.norm(x).relu())).mean((2, 3))


class Computed(nn.Module):
    """A batch-norm after a convolution whose weight every pass computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 216).view(8, 3, 3, 3))
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))
        return self.fc(self.norm(made).mean((2, 3)))


def test_a_batch_norm_after_a_computed_weight_is_left_where_it_is():
    samples = [(sample, 0) for sample in torch.randn(4, 3, 8, 8)]
    found = quantize(Computed().eval(), torch.zeros(1, 3, 8, 8), Policy(layers={"fc": LayerPolicy(8, 8)}), samples)
    assert found.weights.keys() == found.inputs.keys() == {"fc"}


@pytest.mark.parametrize(
    ("model", "shape", "layer"),
    [(NormedTokens(), (8, 6), "fc1"), (Unweighted(), (6,), "fc1"), (ReadTwice(), (3, 8, 8), "conv1")],
    ids=["tokens", "no weights", "read twice"],
)
def test_a_batch_norm_the_exporter_leaves_alone_is_not_folded_here_either(model, shape, layer):
    trained_norm(model.norm)
    weight = quantized(model, shape, {layer: LayerPolicy(8, 8)}).weights[layer]
    original = model.get_submodule(layer)
    np.testing.assert_allclose(real(weight), original.weight.detach(), atol=0.51 * weight.grid.scale.max())
    np.testing.assert_array_equal(weight.bias, original.bias.detach())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x).relu())


class ConvolvedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1)
        return self.conv(self.conv(x).relu()).squeeze(-1)


def test_a_linear_layer_that_runs_again_has_one_grid_that_spans_what_all_its_runs_read():
    model = Twice()
    with torch.no_grad():
        model.fc.weight.copy_(3 * torch.eye(4))
        model.fc.bias.zero_()
    grids = quantized(model, (4,), {"fc": LayerPolicy(8, 8)})
    first = torch.stack([inputs for inputs, _ in calibration((4,))])
    widest = 3 * float(first.max())  # what the second run reads
    grid = grids.inputs["fc"]
    assert (grid.high - int(grid.zero_point)) * float(grid.scale) == pytest.approx(widest, rel=0.1)
    assert (grid.low - int(grid.zero_point)) * float(grid.scale) == pytest.approx(float(first.min()), rel=0.1)


class Branching(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class Raising(Twice):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError


@pytest.mark.parametrize(
    ("model", "layer", "problem"),
    [
        (Twice(), "nowhere", r"^layer 'nowhere' is not in the exported graph$"),
        (Branching(), "fc", r"^torch.export cannot capture the model: \w+: .+$"),
        (Raising(), "fc", r"^torch.export cannot capture the model: ValueError"),
    ],
    ids=["missing layer", "data-dependent", "no message"],
)
def test_what_cannot_be_quantized_is_reported_in_one_line(model, layer, problem):
    with pytest.raises(CompressionError, match=problem) as caught:
        quantized(model, (4,), {layer: LayerPolicy(8, 8)})
    assert "\n" not in str(caught.value)


class Sum(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class SharedSum(Residual):
    """One module makes both additions."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = self.sum(x, self.conv2(x)).relu()
        return self.fc(self.sum(x, self.conv3(x)).mean((2, 3)))


def test_additions_of_a_module_that_runs_twice_are_left_alone():
    assert quantized(SharedSum(), (3, 8, 8), everywhere(SharedSum(), (3, 8, 8), 8, 8)).additions == {}


@pytest.mark.timeout(60)  # torchao alone would spend minutes on a graph that keeps its batch-norm
def test_a_batch_norm_before_its_convolution_is_calibrated_as_it_computes():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)).eval()
    trained_norm(model[0])
    with torch.no_grad():
        highest = float(model[:2](calibration((3, 8, 8)).tensors[0]).max())
    grid = quantized(model, (3, 8, 8), {"2": LayerPolicy(8, 8)}).inputs["2"]
    assert int(grid.zero_point) == 0
    assert 0.9 * highest < 255 * float(grid.scale) < 1.01 * highest
