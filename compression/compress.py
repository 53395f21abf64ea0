"""A policy applied to a workload's model from beginning to end, as a trial does stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..spaces.models.channel_groups import ChannelGroup
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.policy import Policy
from ..spaces.policies.resolved import effective_policy
from ..workloads.workload import Workload
from .folding import fold_norms, unfold
from .packing.packed_file import weights_of
from .pruning.gradual import gradually_pruned
from .pruning.proof import proven_groups
from .pruning.prune import is_structurally_changed, pruned_copy, reestimate_batch_norm
from .quantization.candidates import make_candidate
from .recovery.checkpoint import Checkpoints
from .recovery.recover import recover


def compressed(workload: Workload, policy: Policy, seed: int = 0, batch_size: int = 64) -> Candidate:
    """The candidate that `policy` makes of the workload's model; the same seed gives the same weights.

    Raises:
        CompressionError: the policy does not fit the model.
    """
    example, (groups, _) = workload.example_input, proven_groups(workload)

    def prune(model: nn.Module) -> nn.Module:
        return pruned_in_recovery(model, workload, policy, groups, seed, batch_size)

    if policy.recovery.changes_weights and policy.recovery.steps[0] == "prune":
        model = prune(workload.model)
    else:
        model = pruned_copy(workload.model, example, policy, groups, workload, seed)
    if policy.pruning.steps == 1 and is_structurally_changed(policy, groups):
        reestimate_batch_norm(model, workload.calibration)
    if policy.recovery.changes_weights:
        model = recover(model, workload, policy, seed, batch_size, prune, groups)
    return make_candidate(model, example, effective_policy(policy), workload.calibration)


def pruned_in_recovery(
    model: nn.Module,
    workload: Workload,
    policy: Policy,
    groups: Sequence[ChannelGroup],
    seed: int,
    batch_size: int,
    checkpoints: Checkpoints | None = None,
) -> nn.Module:
    """A copy of `model`, the workload's or one trained from it, pruned at once, or gradually with training in between."""
    if policy.pruning.steps == 1:
        return pruned_copy(model, workload.example_input, policy, groups, workload, seed)

    def train_an_epoch(pruned: nn.Module, current: Policy) -> None:
        one = replace(
            current,
            recovery=replace(current.recovery, epochs=min(1, current.recovery.epochs), steps=("prune", "train")),
        )
        recover(pruned, workload, one, seed, batch_size, checkpoints=checkpoints)

    return gradually_pruned(replace(workload, model=model), policy, groups, train_an_epoch, seed)


def rounded_model(candidate: Candidate) -> nn.Module:
    """A copy of the candidate's model that holds the numbers its artifact computes with: every weight on its grid, in float32."""
    model, quantization = deepcopy(candidate.model), candidate.quantization
    stay = {layer: norm for layer, norm in quantization.norms.items() if norm in quantization.kept_norms}
    for layer in stay:
        _with_bias(model.get_submodule(layer))
    fold_norms(model, {layer: norm for layer, norm in quantization.norms.items() if layer not in stay})
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in weights_of(candidate).items():
            if name in names:
                names[name].copy_(torch.from_numpy(values))
    for layer, norm in stay.items():
        unfold(model, layer, norm)
    return model.eval()


def _with_bias(layer: Any) -> None:
    """Have a layer without one add a bias, for what a batch-norm makes of it."""
    if layer.bias is None:
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        layer.bias = nn.Parameter(torch.zeros(channels, device=layer.weight.device))
