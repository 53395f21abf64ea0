"""What can be counted without running a candidate: FLOPs, BOPs, parameters and packed size."""

from __future__ import annotations

from ..measurement import Measurement
from ..spaces.layers import LAYER_KINDS, macs_by_module
from ..spaces.policy import FULL_PRECISION
from .evaluator import Context, Subject


class Complexity:
    """FLOPs by fvcore (one fused multiply-add is one FLOP), BOPs, parameters and bytes at the policy's widths.

    BOPs are multiply-adds x weight bits x activation bits over the layers (Wang et al. 2020, BayesianBits, arXiv:2005.07093);
    masked weights count in all four, no runtime here skips them.
    """

    metrics = ("flops", "bops", "parameters", "packed_bytes")
    needs_artifact = False

    def evaluate(self, subject: Subject, context: Context) -> list[Measurement]:
        model, policy = subject.candidate.model, subject.candidate.policy
        macs = macs_by_module(model, context.workload.example_input)
        layers = {name: module for name, module in model.named_modules() if type(module) in LAYER_KINDS}
        bops = sum(
            macs.get(name, 0) * policy.layer(name).weight_bits * policy.layer(name).activation_bits for name in layers
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weights = {name: module.weight.numel() for name, module in layers.items()}  # type: ignore[operator,union-attr]
        bits = sum(count * policy.layer(name).weight_bits for name, count in weights.items())
        bits += (parameters - sum(weights.values())) * FULL_PRECISION
        return [
            Measurement.exact("flops", macs[""], "fvcore"),
            Measurement.exact("bops", bops, "fvcore x bits"),
            Measurement.exact("parameters", parameters, "count"),
            Measurement.exact("packed_bytes", -(-bits // 8), "count x bits"),
        ]
