"""The last step of compression: from a model's float weights to the numbers that its artifact contains."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ...core.batch import Batch
from ...spaces.policies.candidate import Candidate
from ...spaces.policies.policy import Policy
from ...workloads.workload import MapDataset
from .codebooks import coded_copy


def make_candidate(model: nn.Module, example_input: Batch, policy: Policy, calibration: MapDataset) -> Candidate:
    """`model`, pruned and recovered, with its weights and activations quantized as the policy says.

    Codebooks are applied first, so that activations are calibrated on what the artifact computes.

    Args:
        model: float32, eval mode; left as it is.
        example_input: shape [1, ...].
        policy: in terms of the layers the model has.

    Raises:
        CompressionError: torch.export or PT2E cannot take the model.
    """
    from .quantize import quantize  # only here: it imports torchao, which takes two seconds

    model, codes = coded_copy(model, policy)
    quantization = quantize(model, example_input, policy, calibration)
    return Candidate(policy, model, replace(quantization, codes=codes))
