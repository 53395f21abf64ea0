"""What can be counted without running a candidate: FLOPs, BOPs and parameters."""

from __future__ import annotations

from ..core.measurement import Measurement
from ..core.metrics import metrics_named
from ..spaces.models.layers import LAYER_KINDS, macs_by_module
from ..spaces.policies.layer_policy import FULL_PRECISION
from ..spaces.policies.policy import LayerPolicy
from .evaluator import Context, Evaluator, LoweredCandidate, needed
from .registry import register


@register
class Complexity(Evaluator):
    """FLOPs by fvcore (one fused multiply-add is one FLOP), BOPs and parameters.

    BOPs are multiply-adds x weight bits x activation bits over the layers (Wang et al. 2020, BayesianBits, arXiv:2005.07093);
    masked weights count in all three: no runtime here skips them.
    """

    name = "complexity"
    metrics = metrics_named("flops", "bops", "parameters")
    phases = ("counted",)

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        candidate = needed(lowered.candidate, "complexity needs the model")
        model, policy = candidate.model, candidate.policy
        macs = macs_by_module(model, context.workload.example_input)
        layers = {name: module for name, module in model.named_modules() if type(module) in LAYER_KINDS}
        bops = sum(
            macs.get(name, 0) * arithmetic_bits(policy.layer(name)) * policy.layer(name).activation_bits
            for name in layers
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return [
            Measurement.exact("flops", macs[""], "fvcore"),
            Measurement.exact("bops", bops, "fvcore x bits"),
            Measurement.exact("parameters", parameters, "count"),
        ]


def arithmetic_bits(layer: LayerPolicy) -> int:
    """Bits of the weight that is multiplied with; codes stand for float numbers."""
    return FULL_PRECISION if layer.has_codebook else layer.weight_bits
