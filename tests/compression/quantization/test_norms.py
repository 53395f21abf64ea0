"""Batch-norms that are more than what follows one convolution: what is folded, what stays, and that the model computes the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from slimfront.compression.compress import rounded_model
from slimfront.compression.folding import fold_norms
from slimfront.compression.packing.packed_file import weights_of
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.quantize import folded_norms
from slimfront.core.errors import CompressionError
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset


class Normed(nn.Module):
    """Convolutions whose batch-norms `of` arranges."""

    def __init__(self, of: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.of = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1), of
        self.norm, self.second, self.active = nn.BatchNorm2d(8), nn.BatchNorm2d(8), Active(8)
        for norm in (self.norm, self.second, self.active):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 3.5)
            nn.init.uniform_(norm.weight, 0.2, 2.2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self, x)


class Active(nn.BatchNorm2d):
    """With an activation, as those of timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.PReLU(channels, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


ARRANGED = {
    "after two layers": lambda m, x: m.norm(m.conv(m.norm(m.stem(x)).relu())),
    "after a layer and something else": lambda m, x: m.norm(m.conv(m.stem(x))) + m.norm(m.stem(x).relu()),
    "one after another": lambda m, x: m.second(m.norm(m.conv(m.stem(x)).relu())) + m.second(m.norm(m.stem(x))),
    "two in a row": lambda m, x: m.second(m.norm(m.conv(m.stem(x)))),
    "with an activation": lambda m, x: m.active(m.conv(m.stem(x))),
    "run by the model": lambda m, x: functional.batch_norm(
        m.conv(m.stem(x)), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias
    ),
}
"""Ways in which a batch-norm is more than what follows one convolution; `stem` runs twice in some, and is never folded there."""


@pytest.mark.timeout(60)  # torchao alone would spend minutes on a graph that keeps its batch-norm
@pytest.mark.parametrize("chosen", [("stem", "conv"), ("conv",)], ids="+".join)
@pytest.mark.parametrize("of", ARRANGED.values(), ids=ARRANGED)
def test_a_model_on_its_grids_computes_what_it_did_wherever_its_batch_norms_are(of, chosen):
    model, x = Normed(of).eval(), torch.randn(4, 3, 5, 5)
    data = TensorDataset(x, torch.zeros(4))
    expected = model(x)
    candidate = make_candidate(model, x[:1], Policy(layers={name: LayerPolicy(8, 8) for name in chosen}), data)
    torch.testing.assert_close(rounded_model(candidate)(x), expected, rtol=0.05, atol=0.05)
    folded = copy.deepcopy(model)
    fold_norms(folded, folded_norms(folded, x[:1]))
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    weights = weights_of(candidate)
    assert {name for name in model.state_dict() if ".act." in name} <= weights.keys()
    assert all(f"{norm}.weight" in weights for norm in candidate.quantization.kept_norms)


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Masked(nn.BatchNorm2d):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x) * mask


@pytest.mark.parametrize("kind", [Doubled, Masked])
def test_a_norm_that_computes_something_of_its_own_is_not_folded(kind):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(8))
    with pytest.raises(CompressionError, match=rf"^1, a {kind.__name__}, is not a batch-norm that its parts follow"):
        fold_norms(model.eval(), {"0": "1"})
