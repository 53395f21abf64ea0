"""Latency predicted from a table of a model's layers, for a target that is not reachable.

A table is fitted once, where the target can be reached, to measured speed-ups of whole compressed models: latency is taken
to be a sum over layers, each with a cost per multiply-add, per byte moved and per call in the precision it runs in. That is
what the layer-wise tables of ProxylessNAS and Once-for-All hold (Cai et al. 2019, arXiv:1812.00332; 2020,
arXiv:1908.09791), except that here the runtime has fused what it fuses and converted what it converts. Every cost is shared
by the layers of a kind and corrected per layer as far as the measurements support it. The error the table is given is that on
policies it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.hooks import removed_after
from ...spaces.models.layers import LAYER_KINDS, macs_by_module
from ...spaces.models.recurrent import RECURRENT_KINDS, is_single_layer
from ...spaces.policies.policy import Policy
from ...spaces.policies.resolved import as_layer_policies
from ..cards.latency_table import Costs, LatencyTable

FOLDS = 5
LAYER_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""The penalties of a correction per layer, of which cross-validation picks one; costs shared by a kind have `SHARED_PENALTY`."""

SHARED_PENALTY = 0.01
SURE = 0.02
"""A measurement whose relative half-interval is wider than this has a lower weight in the fit."""

FLOAT_NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Float precision -> what costs call it."""


@dataclass(frozen=True)
class Call:
    """The work of a layer for one sample: elements of its input, output and weight, and multiply-adds."""

    kind: str
    inputs: int
    outputs: int
    weights: int
    macs: int


def layers_of(model: nn.Module) -> list[str]:
    """Names of the layers that a table covers."""
    return [name for name, module in model.named_modules() if type(module) in LAYER_KINDS or is_single_layer(module)]


@torch.no_grad()
def calls_of(model: nn.Module, example_input: Batch) -> dict[str, Call]:
    """Layer -> its work, in the order of execution; `model` ends in eval mode."""
    macs, calls = macs_by_module(model, example_input), {}

    def note(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            made: Tensor = (
                output[0] if isinstance(output, tuple) else output
            )  # a recurrent layer gives its last state too
            weights = sum(weight.numel() for weight in layer.parameters() if weight.ndim > 1)
            calls[name] = Call(_kind(layer), inputs[0].numel(), made.numel(), weights, macs[name])

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in layers_of(model)]
    with removed_after(hooks):
        model(example_input)
    return calls


def cost_units(policy: Policy, calls: Mapping[str, Call], reference: Mapping[str, Call]) -> Costs:
    """The amounts of a candidate of everything that costs time.

    Args:
        calls: of the pruned model. reference: of the uncompressed one, which all amounts are relative to.
    """
    units: Costs = {"run": 1.0}
    total = Call(
        "", *(sum(getattr(c, f) for c in reference.values()) for f in ("inputs", "outputs", "weights", "macs"))
    )
    previous = _floats(policy)
    for name, call in calls.items():
        precision = _precision(policy, name)
        shared = f"{call.kind}.{precision}"
        amounts = {
            f"{shared}.macs": call.macs / total.macs,
            f"{shared}.inputs": call.inputs / total.inputs,
            f"{shared}.outputs": call.outputs / total.outputs,
            f"{shared}.weights": call.weights / total.weights,
            f"{shared}.calls": 1 / len(reference),
            f"{name}:{precision}": call.macs / reference[name].macs * _share(reference[name], total),
            f"{previous}-{precision}.inputs": call.inputs / total.inputs * (previous != precision),
        }
        for key, amount in amounts.items():
            units[key] = units.get(key, 0.0) + amount
        previous = precision
    return units


def fit_table(
    model: Sequence[str],
    units: Sequence[Costs],
    relative: Sequence[float],
    spread: Sequence[float],
    reference_ms: float,
) -> LatencyTable:
    """Fit costs to measured latencies.

    Args:
        model: `layers_of` the uncompressed model.
        units: `cost_units` of each measured policy.
        relative: its latency over the reference's. spread: half of its 95 % interval, relative.
    """
    names = sorted({name for each in units for name in each})
    amounts = np.array([[each.get(name, 0.0) for name in names] for each in units])
    measured = np.asarray(relative)
    trust = SURE / np.maximum(SURE, spread)
    scores = {penalty: _held_out_errors(names, amounts, measured, trust, penalty) for penalty in LAYER_PENALTIES}
    penalty = min(scores, key=lambda tried: float(np.median(scores[tried])))
    costs = _solve(names, amounts, measured, trust, penalty)
    return LatencyTable(
        model=list(model),
        costs={name: float(cost) for name, cost in zip(names, costs, strict=True) if cost > 0},
        reference_ms=reference_ms,
        error=float(np.median(scores[penalty])),
        error_95=float(np.quantile(scores[penalty], 0.95)),
        policies=len(units),
    )


def _held_out_errors(
    names: Sequence[str], amounts: np.ndarray, measured: np.ndarray, trust: np.ndarray, penalty: float
) -> np.ndarray:
    """Absolute relative errors, each on a policy that was left out of the fit."""
    fold = np.arange(len(measured)) % FOLDS
    errors = np.empty(len(measured))
    for left_out in range(FOLDS):
        kept = fold != left_out
        costs = _solve(names, amounts[kept], measured[kept], trust[kept], penalty)
        errors[~kept] = np.abs(amounts[~kept] @ costs / measured[~kept] - 1)
    return errors


def _solve(
    names: Sequence[str], amounts: np.ndarray, measured: np.ndarray, trust: np.ndarray, penalty: float
) -> np.ndarray:
    """Non-negative ridge regression of relative errors: no layer takes negative time."""
    weights = np.array([penalty if ":" in name else SHARED_PENALTY for name in names])
    system = np.concatenate([amounts * (trust / measured)[:, None], np.diag(weights)])
    return nnls(system, np.concatenate([trust, np.zeros(len(names))]), maxiter=50 * len(names))[0]


def _precision(policy: Policy, name: str) -> str:
    layer = as_layer_policies(policy).layer(name)
    if layer.is_bfloat16:
        return "bf16"
    if layer.is_dynamic:
        return "dynamic"  # integers, and the computation of their range
    on_integers = layer.has_weight_grid and layer.has_activation_grid
    return "i8" if on_integers else _floats(policy)


def _floats(policy: Policy) -> str:
    """What costs call the precision of a policy's floats; the runtime's default is one of its own."""
    return FLOAT_NAMES.get(policy.float_precision, policy.float_precision)


def _kind(layer: nn.Module) -> str:
    if type(layer) in RECURRENT_KINDS:
        return RECURRENT_KINDS[type(layer)]
    groups = getattr(layer, "groups", 1)
    kernel = getattr(layer, "kernel_size", ())
    if groups > 1:
        return "depthwise"
    return "pointwise" if kernel and set(kernel) == {1} else LAYER_KINDS[type(layer)]


def _share(call: Call, total: Call) -> float:
    return call.macs / total.macs
