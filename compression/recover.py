"""Recovery: fine-tuning a pruned model while it imitates the uncompressed one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..spaces.policy import Policy
from ..workloads.workload import Workload
from .batches import loader


def recover(student: nn.Module, workload: Workload, policy: Policy, seed: int, batch_size: int = 64) -> None:
    """Train `student` in place on the training split as `policy.recovery` says; it ends in eval mode.

    Weights that `policy` masked stay zero. The loss is alpha x distillation + (1 - alpha) x the workload's own; SGD with Nesterov momentum under a one-cycle
    schedule. The same seed gives the same weights on the same machine.
    """
    recovery = policy.recovery
    if recovery.epochs == 0:
        return
    masks = _masks(student, policy)
    device = next(student.parameters()).device
    teacher = workload.model.eval()
    batches = loader(workload.train, batch_size, shuffle_seed=seed)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=recovery.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recovery.learning_rate, total_steps=recovery.epochs * len(batches)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.train()
        for _ in range(recovery.epochs):
            for inputs, targets in batches:
                inputs, targets = inputs.to(device), targets.to(device)
                with torch.no_grad():
                    guidance = teacher(inputs)
                outputs = student(inputs)
                soft = distillation_loss(outputs, guidance, recovery.temperature)
                hard = workload.loss_function(outputs, targets)
                loss = recovery.alpha * soft + (1 - recovery.alpha) * hard
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for weight, mask in masks:
                        weight.mul_(mask)
                schedule.step()
    student.eval()


def _masks(student: nn.Module, policy: Policy) -> list[tuple[Tensor, Tensor]]:
    """(weight, 1 where it is not zero) of every layer the policy sparsifies."""
    weights = [student.get_submodule(name).weight for name, layer in policy.layers.items() if layer.sparsity]
    return [(weight, (weight != 0).to(weight.dtype)) for weight in weights]  # type: ignore[union-attr]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 x KL(teacher || student) of the logits softened by T (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        student, teacher: logits, shape [batch, classes].
        temperature: T > 0; T^2 keeps the gradient's size independent of it.
    """
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
