"""A package that adds one of each kind to slimfront by its entry points: nothing here registers anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import Metric
from slimfront.evaluators.evaluator import Evaluator
from slimfront.spaces.knobs.kind import ExtensionKind
from torch import nn
from torch.nn import functional


class Largest:
    """A criterion: the largest weight of a channel, whatever the others are."""

    needs_gradients = False

    def channels(self, group, name, scoring):
        return group[0].dep.target.module.weight.detach().abs().flatten(1).amax(1)[group[0].idxs]

    def weights(self, weight, name, scoring):
        return weight.detach().abs()

    def heads(self, attention, name, scoring):
        raise NotImplementedError


class Agreement:
    """A distiller: mean squared distance of the logits."""

    tap = None

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(self, student: Sequence[Any], teacher: Sequence[Any], projections: nn.ModuleList) -> torch.Tensor:
        return functional.mse_loss(student[0], teacher[0])


ZEROS = Metric("zero_weights", "fraction", "maximize", "weights that are exactly zero", "count", "counted")


class ZeroWeights(Evaluator):
    """An evaluator: how many of the candidate's weights are zero."""

    name = "zero_weights"
    metrics = (ZEROS,)
    phases = ("counted",)

    def evaluate(self, lowered, context):
        values = torch.cat([parameter.flatten() for parameter in lowered.candidate.model.parameters()])
        return [Measurement.exact("zero_weights", (values == 0).float().mean().item(), "counted")]


@dataclass(frozen=True, kw_only=True)
class Shrinkage(ExtensionKind):
    """A kind of knob: the smallest weights of every convolution become zero."""

    def compress(self, model, policy):
        for share in policy.extensions.get(self.name, {}).values():
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    weight = module.weight.data
                    weight[weight.abs() < share * weight.abs().max()] = 0


SHRINKAGE = Shrinkage(
    name="shrinkage",
    key="shrinkage",
    type=Annotated[float, Field(ge=0, lt=1)],
    neutral=0.0,
    meaning="weights below this share of a layer's largest become zero",
    label="shrinkage",
    subject="model",
)
