"""The optimizer of a recovery and the learning rate of each of its steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from ...spaces.policies.policy import Recovery


def optimizer_of(parameters: Iterable[nn.Parameter], recovery: Recovery) -> torch.optim.Optimizer:
    """The optimizer that `recovery` names, at its highest learning rate."""
    rate = recovery.learning_rate
    if recovery.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=0.01)
    if recovery.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, rate)
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


def schedule_of(optimizer: torch.optim.Optimizer, recovery: Recovery, steps: int) -> LRScheduler:
    """The schedule that `recovery` names, which ends after so many steps."""
    if recovery.schedule == "one_cycle":
        has_momentum = recovery.optimizer != "adafactor"
        return OneCycleLR(optimizer, recovery.learning_rate, total_steps=steps, cycle_momentum=has_momentum)
    if recovery.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return LambdaLR(optimizer, lambda _step: 1.0)


def learning_rate_shares(recovery: Recovery, steps: int) -> list[float]:
    """The learning rate of each of so many steps of an optimizer, as a share of their sum."""
    optimizer = optimizer_of([nn.Parameter(torch.zeros(()))], recovery)
    schedule, rates = schedule_of(optimizer, recovery, steps), []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return [rate / sum(rates) for rate in rates]
