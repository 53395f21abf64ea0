"""Steps of a recovery pipeline that read the calibration split without its labels, and train nothing.

| step | what |
|---|---|
| equalize | `equalize.equalize` |
| adaround | `adaround.round_adaptively` |
| correct_bias | `bias_correction.correct_biases` |
| awq | `awq.scale_by_activations` |
| gptq | `gptq.round_with_feedback` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.policy import Policy
from ...workloads.workload import Workload
from ..folding import fold_norms
from ..quantization.adaround import round_adaptively
from ..quantization.awq import scale_by_activations
from ..quantization.bias_correction import correct_biases
from ..quantization.codebooks import coded_copy
from ..quantization.equalize import equalize
from ..quantization.gptq import round_with_feedback

Step = Callable[[nn.Module, Workload, Policy, int], None]
"""A function that changes a model, batch-norm folded, in place; the same seed gives the same weights."""


def calibrated(model: nn.Module, workload: Workload, policy: Policy) -> dict[str, QuantParams]:
    """Fold batch-norm where lowering does, in place; returns the quantization parameters of layers' inputs."""
    from ..quantization.quantize import quantize  # only here: it imports torchao, which takes two seconds

    _fold_norms(model, workload)
    coded, _ = coded_copy(model, policy)
    return dict(quantize(coded, workload.example_input, policy, workload.calibration).inputs)


def _fold_norms(model: nn.Module, workload: Workload) -> None:
    from ..quantization.quantize import folded_norms  # only here, as above

    fold_norms(model, folded_norms(model, workload.example_input))


def _equalize(model: nn.Module, workload: Workload, _policy: Policy, _seed: int) -> None:
    _fold_norms(model, workload)
    equalize(model, workload.example_input)


def _adaround(model: nn.Module, workload: Workload, policy: Policy, seed: int) -> None:
    round_adaptively(model, policy, calibrated(model, workload, policy), workload.calibration, seed)


def _correct_bias(model: nn.Module, workload: Workload, policy: Policy, _seed: int) -> None:
    correct_biases(model, policy, calibrated(model, workload, policy), workload.calibration)


def _awq(model: nn.Module, workload: Workload, policy: Policy, _seed: int) -> None:
    _fold_norms(model, workload)
    scale_by_activations(model, workload.example_input, policy, workload.calibration)


def _gptq(model: nn.Module, workload: Workload, policy: Policy, _seed: int) -> None:
    round_with_feedback(model, policy, calibrated(model, workload, policy), workload.calibration)


POST_TRAINING: Mapping[str, Step] = {
    "equalize": _equalize,
    "adaround": _adaround,
    "correct_bias": _correct_bias,
    "awq": _awq,
    "gptq": _gptq,
}
