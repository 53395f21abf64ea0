"""Gradients: which parameters have one, and that of a workload's loss, for criteria that ask what the loss would change by."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..workloads.workload import Workload
from .batches import loader


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose floating-point parameters are all trained, those that `model` has frozen too."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def accumulate_gradients(model: nn.Module, workload: Workload, batch_size: int = 50) -> None:
    """Leave in every parameter's `grad` the sum over calibration batches of the mean loss's gradient; in eval mode.

    Only its size relative to others matters to a ranking, so that the sum serves as well as the mean.
    """
    model.eval()
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        for inputs, targets in loader(workload.calibration, batch_size):
            workload.loss_function(model(inputs), targets).backward()
