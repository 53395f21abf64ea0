"""Small networks of the kinds that lowering has to get right, and candidates made of them."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.compression.folding import fold_norms
from slimfront.compression.quantization.captured import captured, with_observers
from slimfront.compression.quantization.quantize import PolicyQuantizer, _spell_out_norms, quantize
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.registry import RUNTIMES
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import Scheme
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e


class Ones(nn.Module):
    """All products that it adds are the largest of 8 bits, once it is quantized."""

    shape = (16, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, bias=False)
        self.fc = nn.Linear(16, 4, bias=False)
        for weight in self.parameters():
            nn.init.ones_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@cache
def _adds_exactly(runtime: str) -> bool:
    """Whether the kernels of `runtime` add 8-bit products exactly here: saturated sums come out at half."""
    model, example = Ones().eval(), torch.ones(1, *Ones.shape)
    policy = Policy(layers=dict.fromkeys(("conv", "fc"), LayerPolicy(8, 8)))
    data = TensorDataset(example.expand(10, -1, -1, -1), torch.zeros(10))
    made = Candidate(policy, model, quantize(model, example, policy, data))
    lowered, target = get_runtime(runtime), load_target(f"cpu-{runtime}")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = lowered.lower(made, example, target, Path(folder) / f"model{lowered.suffix}").path
        return bool(
            np.allclose(lowered.load(path, target).run({"input": example.numpy()})["output"], model(example), rtol=0.05)
        )


@pytest.fixture(scope="session")
def adds_exactly() -> Callable[[str], bool]:
    return _adds_exactly


@pytest.fixture(scope="session")
def needs_exact_products() -> Callable[[str], None]:
    """Skips a test of 8-bit weights and activations where the kernels of this machine are not exact enough for it.

    The kernels are asked, since a runtime may be limited to less than the processor has; that they do as the processor's
    flags promise is a test of its own.
    """

    def skip(runtime: str) -> None:
        if RUNTIMES[runtime].saturates and not _adds_exactly(runtime):
            pytest.skip(f"no VNNI: {runtime} adds pairs of 8-bit products in 16 bits here, which saturate")

    return skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Residual(nn.Module):
    """Convolutions with batch-norm in blocks of a list, each around an addition, and a linear classifier."""

    shape = (3, 8, 8)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        block = lambda: nn.Sequential(  # noqa: E731
            OrderedDict(
                conv1=nn.Conv2d(width, width, 3, padding=1, bias=False),
                norm1=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                conv2=nn.Conv2d(width, width, 3, padding=1),
            )
        )
        self.blocks = nn.ModuleList([block(), block()])
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.fc(x.mean((2, 3)))


class Mobile(nn.Module):
    """Grouped and depthwise convolutions, a stride, relu6, and names that an exporter could confuse."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "conv": nn.Conv2d(3, 16, 3, padding=1),
                "0": nn.Conv2d(16, 16, 3, padding=1, groups=4),
                "Conv": nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
            }
        )
        self.conv = nn.Conv2d(16, 32, 1)
        self.Gemm = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.parts["conv"](x))
        x = functional.relu6(self.parts["Conv"](functional.relu6(self.parts["0"](x))))
        return self.Gemm(self.conv(x).relu().flatten(2).mean(2))


class Tokens(nn.Module):
    """Linear layers over tokens, with and without bias, which become matrix products, and one that becomes a Gemm."""

    shape = (5, 12)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.mix = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16, bias=False))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.mix(x)).mean(1))


class Signal(nn.Module):
    """Convolutions of one dimension."""

    shape = (2, 20)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 8, 5)
        self.norm1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 8, 3, dilation=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.norm1(self.conv1(x)).relu()).relu().mean(2))


class PreActivation(nn.Module):
    """Batch-norm that no exporter folds: before its convolution, next to a shortcut, after a linear layer."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc1 = nn.Linear(8, 16)
        self.norm2 = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(self.norm1(x).relu())
        return self.fc2(self.norm2(self.fc1(x.mean((2, 3)))).relu())


class Heads(nn.Module):
    """Batch-norm behind linear layers: of one vector per sample, with and without bias, and of tokens."""

    shape = (6, 10)

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Linear(10, 10)
        self.norm1 = nn.BatchNorm1d(6)
        self.hidden1 = nn.Linear(10, 24, bias=False)
        self.norm2 = nn.BatchNorm1d(24)
        self.hidden2 = nn.Linear(24, 16)
        self.norm3 = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.token(x)).relu().mean(1)
        return self.last(self.norm3(self.hidden2(self.norm2(self.hidden1(x)).relu())).relu())


class Additions(nn.Module):
    """Additions that are no residuals before and between those that are.

    Of the input, also behind a dropout, of a number, of a parameter, also of a part of one, and inside GELU.
    """

    shape = (8, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.offset = nn.Parameter(torch.full((8, 1, 1), 0.25))
        self.table = nn.Parameter(torch.linspace(-1, 1, 10).reshape(10, 1, 1))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(x, training=self.training) + self.conv1(x)
        x = functional.gelu(x + self.table[1:9].contiguous()) + 1.5
        x = self.conv2(x) + self.conv3(x) + self.offset
        return self.fc(x.relu().mean((2, 3)))


class Scaled(nn.Module):
    """Multiplications per channel between linear layers, by a parameter (LayerScale) and by a batch-norm without weights."""

    shape = (10,)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 24)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 24))
        self.second = nn.Linear(24, 16)
        self.norm = nn.BatchNorm1d(16, affine=False)
        self.third = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.norm(self.second(self.first(x) * self.scale)))


NETWORKS = {
    "residual": Residual,
    "mobile": Mobile,
    "tokens": Tokens,
    "signal": Signal,
    "pre-activation": PreActivation,
    "heads": Heads,
    "additions": Additions,
    "scaled": Scaled,
}


def inputs_of(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def network_of(name: str) -> nn.Module:
    """A network with batch-norm statistics of its own data, in evaluation mode."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for seed in range(5):
            model.train()(inputs_of(model.shape, 50, 100 + seed) + 0.5)
    return model.eval()


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return network_of(request.param)


@pytest.fixture
def make_network() -> Callable[[str], nn.Module]:
    return network_of


@pytest.fixture
def inputs() -> Callable[..., Tensor]:
    """(shape, count, seed) -> random inputs [count, *shape]."""
    return inputs_of


@pytest.fixture
def candidate() -> Callable[..., Candidate]:
    """(model, {layer: LayerPolicy}, scheme) -> candidate, calibrated on 100 random inputs."""

    def make(model: nn.Module, layers: Mapping[str, LayerPolicy], scheme: Scheme = Scheme()) -> Candidate:
        policy = Policy(layers=dict(layers), scheme=scheme)
        data = TensorDataset(inputs_of(model.shape, 100, 0), torch.zeros(100))
        return Candidate(policy, model, quantize(model, torch.zeros(1, *model.shape), policy, data))

    return make


ORACLE_BATCH = 50


def _converted_graph(candidate: Candidate, inputs: Tensor, calibration: Tensor) -> nn.Module:
    """The model as torchao converts it: the slow oracle, which computes on the same grids in torch.

    Args:
        inputs: of the shape the graph is for, and the batches of the calibration.
    """
    layers = {
        n: layer for n, layer in candidate.policy.layers.items() if min(layer.weight_bits, layer.activation_bits) <= 8
    }
    model = _in_bfloat16(candidate)
    if not layers:
        return model
    exported = captured(model, inputs)
    _spell_out_norms(exported)
    prepared = with_observers(exported, PolicyQuantizer(layers, candidate.policy.scheme))
    with torch.no_grad():
        for batch in calibration.split(len(inputs)):
            prepared(batch)
    return convert_pt2e(prepared)


@torch.no_grad()
def _converted(candidate: Candidate, inputs: Tensor, calibration: Tensor) -> np.ndarray:
    """Outputs of the converted graph."""
    oracle = _converted_graph(candidate, inputs[:ORACLE_BATCH], calibration)
    return torch.cat([oracle(batch) for batch in inputs.split(ORACLE_BATCH)]).numpy()


@torch.no_grad()
def _in_bfloat16(candidate: Candidate) -> nn.Module:
    """A copy of the model whose layers of 16 bits are torch's own in bfloat16, batch-norm folded."""
    model, layers = deepcopy(candidate.model), candidate.policy.layers
    norms = {name: norm for name, norm in candidate.quantization.norms.items() if layers[name].weight_bits == 16}
    fold_norms(model, norms)
    for name, layer in layers.items():
        module = model.get_submodule(name)
        if (layer.weight_bits, layer.activation_bits) == (16, 16):
            model.set_submodule(name, Half(module))
        elif layer.weight_bits == 16:
            module.weight.copy_(module.weight.bfloat16().float())
    return model


class Half(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.bfloat16()).float()


@pytest.fixture(scope="session")
def converted_graph() -> Callable[[Candidate, Tensor, Tensor], nn.Module]:
    return _converted_graph


@pytest.fixture(scope="session")
def converted() -> Callable[[Candidate, Tensor, Tensor], np.ndarray]:
    return _converted
