"""Inputs made from a model alone, for distillation without data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ...workloads.workload import Workload

SAMPLES, BATCH, STEPS, STEP_SIZE = 256, 64, 30, 0.1


def synthetic_inputs(workload: Workload, seed: int) -> TensorDataset:
    """`SAMPLES` inputs like the example in shape, with the classes the model finds in them.

    Gaussian noise, moved until the statistics of what each batch-norm reads are those it remembers (Cai et al. 2020,
    ZeroQ, arXiv:2001.00281, equation 2); plain noise for a model without batch-norm. No data of the workload are read.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, *workload.example_input.shape[1:])
    batches = [
        _matched(workload.model.eval(), torch.randn(shape, generator=generator)) for _ in range(SAMPLES // BATCH)
    ]
    inputs = torch.cat(batches)
    with torch.no_grad():
        classes = torch.cat([workload.model(batch).argmax(dim=-1) for batch in batches])
    return TensorDataset(inputs, classes)


def _matched(model: nn.Module, inputs: Tensor) -> Tensor:
    """`inputs` after `STEPS` of Adam on the distance between batch-norms' statistics of them and those remembered."""
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and m.track_running_stats
    ]
    if not norms:
        return inputs
    gaps: list[Tensor] = []
    hooks = [norm.register_forward_pre_hook(lambda norm, args: gaps.append(_gap(norm, args[0]))) for norm in norms]
    inputs = inputs.clone().requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=STEP_SIZE)
    try:
        for _ in range(STEPS):
            gaps.clear()
            model(inputs)
            optimizer.zero_grad()
            inputs.grad = torch.autograd.grad(torch.stack(gaps).sum(), inputs)[0]
            optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()
    return inputs.detach()


def _gap(norm: nn.Module, read: Tensor) -> Tensor:
    """Squared distance of mean and deviation of `read` [batch, channels, ...] from the running ones, per channel."""
    dimensions = [0, *range(2, read.ndim)]
    mean, deviation = read.mean(dimensions), read.std(dimensions)
    remembered = norm.running_var.clamp_min(1e-12).sqrt()  # type: ignore[union-attr,operator]
    return ((mean - norm.running_mean) ** 2 + (deviation - remembered) ** 2).mean()  # type: ignore[operator]
