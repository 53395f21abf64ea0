"""Numbers in bfloat16: the upper half of a float32, rounded to nearest, ties to even.

Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", arXiv:1905.12322: the range of float32 at 8 bits of
significand, so that nothing is calibrated. Sums are accumulated in float32, and a layer's output is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...spaces.policies.candidate import RoundedWeight
from ...spaces.policies.policy import Policy
from ..folding import folded_parameters


def rounded(tensor: Tensor) -> Tensor:
    """`tensor` rounded to bfloat16; gradients pass straight through (Bengio et al. 2013, arXiv:1308.3432)."""
    held = tensor.detach()
    return tensor + (held.to(torch.bfloat16).to(tensor.dtype) - held)


class BFloat16Weight(nn.Module):
    """A weight in bfloat16 while it is trained."""

    def forward(self, weight: Tensor) -> Tensor:
        return rounded(weight)


def rounded_input(_module: nn.Module, inputs: tuple) -> tuple:
    """Forward pre-hook that rounds a layer's input to bfloat16."""
    return rounded(inputs[0]), *inputs[1:]


def rounded_output(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
    """Forward hook that rounds a layer's output to bfloat16."""
    return rounded(output)


@torch.no_grad()
def rounded_weights(model: nn.Module, policy: Policy, norms: Mapping[str, str]) -> dict[str, RoundedWeight]:
    """Layer -> its weight, of the layers that `policy` puts in bfloat16.

    Args:
        norms: layer -> batch-norm that lowering folds into it.
    """
    found = {}
    for name, layer in policy.layers.items():
        if not layer.has_bfloat16_weight:
            continue
        weight, bias = folded_parameters(model, name, norms.get(name))
        bias_array = None if bias is None else bias.cpu().numpy()
        found[name] = RoundedWeight.of(weight.cpu().numpy(), bias_array, layer.is_bfloat16)
    return found
