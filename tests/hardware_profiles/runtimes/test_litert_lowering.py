"""Operations in TensorFlow Lite compute what torch does, whatever the order of their axes, and integers stay integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.core.errors import LoweringError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.litert.runtime import LiteRtRuntime
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor, nn
from torch.nn import functional

SHAPE = (8, 9, 10)
"""Of one input; every axis has a size of its own."""

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max pooling, sizes rounded up": lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    "max pooling of negative numbers": lambda x: functional.max_pool2d(x - 9, 3, 2, padding=1),
    "mean pooling": lambda x: functional.avg_pool2d(x, 3, 2),
    "mean pooling over padding": lambda x: functional.avg_pool2d(x, 3, 1, padding=1),
    "means": lambda x: x.mean(3) + x.mean((1, 3)).unsqueeze(1),
    "concatenated channels": lambda x: torch.cat([x, x * 2, x.relu()], 1),
    "shuffled channels": lambda x: x.reshape(-1, 2, 4, 9, 10).transpose(1, 2).reshape(-1, 8, 9, 10),
    "halves": lambda x: torch.mul(*x.chunk(2, 1)),
    "slices": lambda x: x[:, 1:7:2, -3:, 4],
    "softmax over channels": lambda x: x.softmax(1),
    "curves": lambda x: (
        functional.hardswish(x) + functional.hardsigmoid(x) * functional.elu(x) - functional.leaky_relu(x)
    ),
    "clipped": lambda x: x.clamp(-0.3, 0.7) / (x.abs() + 1) + x.clamp(min=0.1) ** 2,
    "constants per channel": lambda x: x * torch.linspace(0, 1, 8).reshape(8, 1, 1) + torch.ones(10),
    "attention": lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).softmax(-1) @ x.flatten(2),
    "gelu": functional.gelu,
    "layer norm over channels": lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
}


class Operation(nn.Module):
    """An operation on the input as it comes, and on what a convolution makes of it, whose channels come last."""

    shape = SHAPE

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation, self.conv = operation, nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.operation(x).flatten(1), self.operation(self.conv(x)).flatten(1)], 1)


def outputs(runtime, made: Candidate, inputs: Tensor, folder: Path) -> tuple[np.ndarray, dict[str, str]]:
    target = load_target(f"cpu-{runtime.name}").model_copy(update={"batch": len(inputs)})
    path = runtime.lower(made, inputs[:1], target, folder / f"model{runtime.suffix}").path
    session = runtime.load(path, target)
    return np.array(session.run({"input": inputs.numpy()})["output"]), session.executed_precisions()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_computes_what_it_does_in_torch(name, inputs, tmp_path: Path):
    torch.manual_seed(0)
    model, samples = Operation(OPERATIONS[name]).eval(), inputs(SHAPE, 3, 0)
    found, _ = outputs(LiteRtRuntime(), Candidate(Policy(), model), samples, tmp_path)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(samples).numpy(), rtol=1e-4, atol=1e-5)


class Pooled(nn.Module):
    """Max-pooling with padding of what may be negative, between convolutions."""

    shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(functional.max_pool2d(self.first(x), 3, 2, padding=1)))


def test_pooling_between_integers_is_one_of_integers(candidate, inputs, tmp_path: Path, needs_exact_products):
    needs_exact_products("onnxruntime")
    torch.manual_seed(0)
    made = candidate(Pooled().eval(), dict.fromkeys(("first", "second", "third"), LayerPolicy(8, 8)))
    samples = inputs(SHAPE, 4, 1)
    found, executed = outputs(LiteRtRuntime(), made, samples, tmp_path)
    expected, _ = outputs(get_runtime("onnxruntime"), made, samples, tmp_path)
    assert executed == {"first": "i8", "second": "i8", "third": "f32"}
    assert np.abs(found - expected).max() <= np.ptp(expected) / 255


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        (lambda x: x.cumsum(1), "LiteRT lowering does not know the operation CumSum"),
        (lambda x: functional.avg_pool2d(x, 3, padding=1, count_include_pad=False), "nor a mean over part of its window"),
        (torch.erf, "an error function that is not of a GELU has no counterpart"),
    ],
    ids=["unknown", "pooling", "erf"],
)  # fmt: skip
def test_what_has_no_counterpart_is_reported_with_its_name(operation, problem, tmp_path: Path):
    with pytest.raises(LoweringError, match=rf"^/.+: .*{problem}$"):
        outputs(LiteRtRuntime(), Candidate(Policy(), Operation(operation).eval()), torch.zeros(1, *SHAPE), tmp_path)
