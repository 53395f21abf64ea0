"""Gradients of a workload's loss, for criteria that estimate how the loss would change."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..core.batch import device_of_model
from ..workloads.workload import Workload
from .batches import labelled_batches


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose floating-point parameters are all trainable, including those that are frozen in `model`."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


@torch.no_grad()
def shaken_copy(student: nn.Module) -> nn.Module:
    """A copy with a tenth of each tensor's deviation of noise added to its weights."""
    peer = copy.deepcopy(student)
    for parameter in peer.parameters():
        if parameter.numel() > 1:
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.1)
    return peer.train()


def accumulate_gradients(model: nn.Module, workload: Workload, batch_size: int = 50) -> None:
    """Leave in every parameter's `grad` the sum over calibration batches of the mean loss's gradient; in eval mode.

    Only its size relative to others matters to a ranking, so that the sum serves as well as the mean.
    """
    model.eval()
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        for inputs, targets in labelled_batches(workload.calibration, batch_size, device_of_model(model)):
            workload.loss_function(model(inputs), targets).backward()
