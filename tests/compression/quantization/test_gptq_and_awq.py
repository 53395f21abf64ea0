"""Error feedback and scales by activations: what they leave of a trained network's outputs, and what they may not change."""

import copy
from functools import cache
from itertools import product

import pytest
import torch
from slimfront.compression.compress import compressed, rounded_model
from slimfront.compression.quantization.awq import scale_by_activations
from slimfront.compression.quantization.gptq import hessian, rounded
from slimfront.compression.quantization.weight_grids import weight_grid
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.quantization_scheme import Scheme
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

SCHEMES = (Scheme(), Scheme(group_grids="affine"))


class Block(nn.Module):
    """A residual block of a Transformer without its attention; its first layer reads a normalisation, its last a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 200), nn.Linear(200, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(self.norm(x)).relu())


LINEAR = ("0", "1.fc1", "1.fc2", "2.fc1", "2.fc2", "4")


@cache
def trained() -> Workload:
    """A network that tells 20 points apart, at some 99 %, by inputs of 60 numbers that follow from 15.

    Its normalisations start with sizes that differ by a factor of 30, as those of trained Transformers do.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(20, (1200,), generator=generator)
    factors = torch.randn(20, 15, generator=generator)[labels] + 0.6 * torch.randn(1200, 15, generator=generator)
    inputs = factors @ torch.randn(15, 60, generator=generator) / 4
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(60, 96), Block(96), Block(96), nn.LayerNorm(96), nn.Linear(96, 20))
    for norm in network.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.weight.data = torch.logspace(-1, 0.5, 96)[torch.randperm(96, generator=generator)]
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(60):
        loss = functional.cross_entropy(network(inputs[:600]), labels[:600])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts = [TensorDataset(inputs[a:b], labels[a:b]) for a, b in ((0, 600), (600, 800), (800, 1200))]
    return Workload(network.eval(), parts[0], parts[1], parts[2], parts[2], inputs[:1])


def policy(size: int, scheme: Scheme, *steps: str) -> Policy:
    recovery = Recovery(steps=("prune", *steps)) if steps else Recovery()
    return Policy(
        layers=dict.fromkeys(LINEAR, LayerPolicy(4, weight_group_size=size)), scheme=scheme, recovery=recovery
    )


def error_and_accuracy(found: Policy) -> tuple[float, float]:
    """Mean square of what changes of the outputs on data that no step has read, and the accuracy there."""
    workload = trained()
    inputs, labels = workload.validation.tensors
    with torch.no_grad():
        exact, outputs = workload.model(inputs), rounded_model(compressed(workload, found))(inputs)
    return float((outputs - exact).square().mean()), float((outputs.argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("size", "scheme"), [*product((32, 128), SCHEMES)])
def test_either_step_leaves_less_error_than_rounding_to_the_nearest(size, scheme):
    nearest, accuracy = error_and_accuracy(policy(size, scheme))
    feedback, with_feedback = error_and_accuracy(policy(size, scheme, "gptq"))
    scaled, with_scales = error_and_accuracy(policy(size, scheme, "awq"))
    both, with_both = error_and_accuracy(policy(size, scheme, "awq", "gptq"))
    assert feedback < 0.3 * nearest
    assert scaled < nearest
    assert both < 0.3 * nearest
    assert min(with_feedback, with_scales, with_both) >= accuracy - 0.01


@pytest.mark.parametrize(("size", "bits", "scheme"), [*product((0, 32, 64), (4, 8), SCHEMES)])
def test_what_feedback_rounds_lies_on_the_grid_that_is_read_from_it_and_zeros_stay(size, bits, scheme):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 150, generator=generator)
    weight[torch.rand(7, 150, generator=generator) < 0.3] = 0
    read = torch.randn(50, 150, generator=generator) @ torch.randn(150, 150, generator=generator)
    grid = weight_grid(LayerPolicy(bits, weight_group_size=size), scheme)
    found = rounded(weight, grid, hessian(read))
    torch.testing.assert_close(grid(found), found, rtol=1e-5, atol=1e-6)
    assert (found[weight == 0] == 0).all()
    nearest = grid(weight)
    assert ((found - weight) @ read.T).square().mean() < ((nearest - weight) @ read.T).square().mean()


def test_feedback_by_hand():
    """Two equal inputs: the second makes up for what the first lost. 0.7 sets steps of 0.1; 0.34 + 0.34 is 0.7 short of 0.02."""
    weight, read = torch.tensor([[0.34, 0.34, 0.7]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = rounded(weight, weight_grid(LayerPolicy(4), Scheme()), hessian(read))
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.4, 0.7]]))


def test_scales_change_no_output_of_the_float_model_and_grow_with_the_inputs():
    workload = trained()
    model, inputs = copy.deepcopy(workload.model), workload.validation.tensors[0]
    chosen = scale_by_activations(model, workload.example_input, policy(32, Scheme()), workload.calibration)
    assert set(chosen) == {"1.norm", "1.fc1", "2.norm", "2.fc1", "3"}
    assert all(0 <= exponent < 1 for exponent in chosen.values())
    assert any(chosen.values())
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), workload.model(inputs), rtol=1e-4, atol=1e-4)


def test_a_normalisation_that_something_else_reads_is_not_scaled():
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            normed = self.norm(x)
            return normed + self.fc(normed)

    network, data = Open().eval(), TensorDataset(torch.randn(20, 8), torch.zeros(20))
    wanted = Policy(layers={"fc": LayerPolicy(4, weight_group_size=32)})
    assert scale_by_activations(network, torch.zeros(1, 8), wanted, data) == {}
