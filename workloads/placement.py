"""A workload on the device that a study computes on: its model, its example inputs and its loss; data are moved batch by batch."""

from __future__ import annotations

import platform
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from ..core.batch import device_of, moved
from ..core.errors import WorkloadError
from ..core.interrupts import raise_if_interrupted
from ..core.threads import DeviceKind
from .copies import copied, kept_tensors
from .samples import Samples
from .workload import SPLITS, Workload, describe


def placed(workload: Workload, kind: DeviceKind, data_workers: int = 0) -> Workload:
    """`workload`, which was adapted, on the device that a study asks for, its samples read ahead by so many processes.

    Raises:
        WorkloadError: there is no such device here, or the model does not run on it.
    """
    splits = {name: getattr(workload, name) for name in SPLITS if data_workers}
    ahead = {name: data.read_by(data_workers) for name, data in splits.items() if isinstance(data, Samples)}
    there = on_device(workload, _device(kind, device_of(workload.example_input)))
    return replace(there, **ahead) if ahead else there


def on_device(workload: Workload, device: torch.device) -> Workload:
    """`workload` itself where it is on a device, else a copy there.

    Raises:
        WorkloadError: the model does not run on it.
    """
    own = device_of(workload.example_input)
    if device == own:
        return workload
    model = model_on(workload.model, device)
    example = moved(workload.example_input, device)
    try:
        with torch.no_grad():
            model.eval()(example)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(
            f"model does not run on {device.type}: {describe(error)}; compute.device: {own.type} leaves it where it is"
        ) from error
    loss = deepcopy(workload.loss).to(device) if isinstance(workload.loss, nn.Module) else workload.loss
    return replace(workload, model=model, example_inputs=example, loss=loss)


def model_on(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model on a device, with the tensors that it keeps in plain attributes."""
    there = copied(model).to(device)
    for holder, key, tensor in [*kept_tensors(there)]:
        holder[key] = tensor.to(device)
    return there


def _device(kind: DeviceKind, own: torch.device) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if kind == "cuda" and not has_gpu:
        raise WorkloadError(f"compute.device is cuda, and torch finds no CUDA GPU on {platform.node()}")
    chosen = own.type if kind == "auto" and not has_gpu else "cuda" if kind == "auto" else kind
    if chosen == own.type:
        return own
    return torch.device("cuda", torch.cuda.current_device()) if chosen == "cuda" else torch.device(chosen)
