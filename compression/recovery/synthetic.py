"""Inputs made from a model alone, for distillation without data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ...core.batch import HOST, described
from ...core.errors import WorkloadError
from ...core.hooks import removed_after
from ...workloads.workload import Workload
from ..folding import BATCH_NORMS

SAMPLES, BATCH, STEPS, STEP_SIZE = 256, 64, 30, 0.1


def synthetic_inputs(workload: Workload, seed: int) -> TensorDataset:
    """`SAMPLES` inputs like the example in shape, with what the model makes of them.

    Gaussian noise, optimised until the statistics of every batch-norm's input match its running statistics (Cai et al. 2020,
    ZeroQ, arXiv:2001.00281, equation 2); plain noise for a model without batch-norm. No data of the workload are read.

    Raises:
        WorkloadError: the model takes several inputs or integers, which nothing can be said of.
    """
    generator = torch.Generator().manual_seed(seed)
    example = workload.example_input
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise WorkloadError(
            f"recovery on synthetic data makes up one input of floats, and the model takes {described(example)}"
        )
    shape = (BATCH, *example.shape[1:])
    noise = (torch.randn(shape, generator=generator).to(example.device) for _ in range(SAMPLES // BATCH))
    batches = [_matched(workload.model.eval(), each) for each in noise]
    with torch.no_grad():
        outputs = torch.cat([workload.model(batch) for batch in batches])
    return TensorDataset(torch.cat(batches).to(HOST), outputs.to(HOST))


def _matched(model: nn.Module, inputs: Tensor) -> Tensor:
    """`inputs` after `STEPS` of Adam on the distance of batch-norms' input statistics from their running statistics."""
    statistics = [
        (module, module.running_mean, module.running_var)
        for module in model.modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.running_var is not None
    ]
    if not statistics:
        return inputs
    gaps: list[Tensor] = []

    def watch(mean: Tensor, variance: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _norm, args: gaps.append(_gap(args[0], mean, variance))

    hooks = [norm.register_forward_pre_hook(watch(mean, variance)) for norm, mean, variance in statistics]
    inputs = inputs.clone().requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=STEP_SIZE)
    with removed_after(hooks):
        for _ in range(STEPS):
            gaps.clear()
            model(inputs)
            optimizer.zero_grad()
            inputs.grad = torch.autograd.grad(torch.stack(gaps).sum(), inputs)[0]
            optimizer.step()
    return inputs.detach()


def _gap(read: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """Squared distance of mean and deviation of `read` [batch, channels, ...] from the running ones, over channels."""
    dimensions = [0, *range(2, read.ndim)]
    mean, deviation = read.mean(dimensions), read.std(dimensions)
    running_deviation = running_variance.clamp_min(1e-12).sqrt()
    return ((mean - running_mean) ** 2 + (deviation - running_deviation) ** 2).mean()
