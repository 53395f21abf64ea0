"""Structured and unstructured pruning: removes blocks and channels, replaces operators, masks weights, re-estimates batch-norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ...core.batch import Batch, device_of, device_of_model
from ...core.errors import CompressionError
from ...spaces.knobs.kind import ExtensionKind
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.models.blocks import RemovedBlock
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import LAYER_KINDS, WeightedLayer
from ...spaces.policies.operators import DENSE
from ...spaces.policies.policy import Policy
from ...spaces.policies.resolved import effective_policy
from ...spaces.policies.sparsity import Sparsity, threshold_of
from ...workloads.workload import MapDataset, Workload
from ..batches import CALIBRATION_BATCH, input_batches
from ..folding import BATCH_NORMS
from ..gradients import accumulate_gradients, trainable_copy
from .channels import remove_channels
from .criteria import Criterion, Scoring, get_criterion
from .operators import replace_operators


def kept_channels(policy: Policy, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Group -> channels the policy keeps, for the groups that lose any.

    Raises:
        CompressionError: the policy names a group the model does not have.
    """
    unknown = set(policy.channels) - {group.name for group in groups}
    if unknown:
        raise CompressionError(f"no channel group {sorted(unknown)[0]!r} in the model")
    kept = {group.name: group.kept(policy.kept_fraction(group.name), policy.pruning.multiple) for group in groups}
    return {group.name: kept[group.name] for group in groups if kept[group.name] < group.channels}


def is_structurally_changed(policy: Policy, groups: Sequence[ChannelGroup]) -> bool:
    """Whether the policy changes what layers compute in float, which shifts what batch-norm normalises."""
    changed = any(layer.sparsity or layer.operator != DENSE for layer in policy.layers.values())
    changed = changed or bool(policy.removed_blocks or policy.extensions)
    return changed or bool(kept_channels(policy, groups))


def pruned_copy(
    model: nn.Module,
    example_input: Batch,
    policy: Policy,
    groups: Sequence[ChannelGroup],
    workload: Workload | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of `model` in eval mode, pruned as the policy says: blocks, then channels, then operators, then weights.

    All its parameters are trainable, whether the model's are frozen or not.

    Args:
        example_input: shape [1, ...]; traces the dependencies of channels.
        groups: of `model` before anything was pruned.
        workload: the loss and the calibration data, for what reads more than weights.
        seed: of the random criterion.

    Raises:
        CompressionError: the policy does not fit the model.
    """
    slim = trainable_copy(model)
    for name in policy.removed_blocks:
        _require_module(slim, name)
        slim.set_submodule(name, RemovedBlock())
    kept = _surviving(slim, kept_channels(policy, groups), groups)
    sparse = any(layer.sparsity for layer in policy.layers.values())
    scoring = _scoring(slim, policy.pruning.criterion, workload if kept or sparse else None, seed)
    rule, reduction = policy.pruning.criterion, policy.pruning.reduction
    try:
        remove_channels(slim, example_input, kept, rule, scoring, reduction, _batches(workload))
    except CompressionError as error:
        if policy.removed_blocks:  # groups are proven with all blocks in place
            raise CompressionError(
                f"blocks and channels: without {', '.join(policy.removed_blocks)}, {error}"
            ) from error
        raise
    present = dict(slim.named_modules())
    operators = {name: layer.operator for name, layer in policy.layers.items() if name in present}
    replace_operators(slim, operators, _batches(workload))
    _mask_weights(slim, effective_policy(policy), scoring, workload)
    _extend(slim, policy)
    slim.zero_grad(set_to_none=True)
    return slim


def _extend(model: nn.Module, policy: Policy) -> None:
    """Do what kinds of knobs from outside slimfront decide.

    Raises:
        PolicyError: a kind is not installed.
    """
    for name in policy.extensions:
        kind = KNOB_KINDS[name]
        if isinstance(kind, ExtensionKind):
            kind.compress(model, policy)


def _batches(workload: Workload | None) -> Iterable[Batch] | None:
    return (
        None
        if workload is None
        else input_batches(workload.calibration, CALIBRATION_BATCH, device_of(workload.example_input))
    )


def _require_module(model: nn.Module, name: str) -> None:
    if name not in dict(model.named_modules()):
        raise CompressionError(f"no block {name!r} in the model")


def _surviving(model: nn.Module, kept: dict[str, int], groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """`kept` under the name of a layer of each group that no removed block took along."""
    paths = {name for name, _ in model.named_modules()}
    members = {group.name: [group.name, *(group.layers if group.unit == "channel" else ())] for group in groups}
    left = {name: [member for member in members[name] if member in paths] for name in kept}
    return {left[name][0]: channels for name, channels in kept.items() if left[name]}


def _scoring(model: nn.Module, criterion: str, workload: Workload | None, seed: int) -> Scoring:
    if workload is None or not get_criterion(criterion).needs_gradients:
        return Scoring(seed)
    accumulate_gradients(model, workload)
    return Scoring(seed, has_gradients=True)


@torch.no_grad()
def _mask_weights(model: nn.Module, policy: Policy, scoring: Scoring, workload: Workload | None) -> None:
    """Zero weights of the layers that `policy` sparsifies, those of the lowest importance first."""
    sparsities = {name: layer.sparsity for name, layer in policy.layers.items() if layer.sparsity}
    layers = {name: _layer(model, name) for name in sparsities}
    if workload and scoring.has_gradients:
        _complete_gradients(model, layers.values(), workload)
    rule = get_criterion(policy.pruning.criterion)
    together = _mask_together(layers, sparsities, rule, scoring) if policy.pruning.scope == "global" else set()
    for name, layer in layers.items():
        if name not in together:
            is_threshold = threshold_of(sparsities[name]) is not None
            mask_weight(layer, sparsities[name], None if is_threshold else rule.weights(layer.weight, name, scoring))


def _complete_gradients(model: nn.Module, layers: Iterable[WeightedLayer], workload: Workload) -> None:
    """Compute gradients again where layers lack them: factors and pruned heads are new parameters."""
    if any(layer.weight.grad is None for layer in layers):
        accumulate_gradients(model, workload)


def _mask_together(
    layers: Mapping[str, WeightedLayer], sparsities: Mapping[str, Sparsity], rule: Criterion, scoring: Scoring
) -> set[str]:
    """Mask the weights of the lowest importance in all layers with a fraction, as many as the fractions ask for in all.

    Returns:
        Those layers; patterns and thresholds are of one layer.
    """
    fractions = {name: sparsity for name, sparsity in sparsities.items() if not isinstance(sparsity, str)}
    if fractions:
        scores = {name: rule.weights(layers[name].weight, name, scoring) for name in fractions}
        for name, mask in global_masks(scores, fractions).items():
            layers[name].weight.mul_(mask)
    return set(fractions)


def global_masks(scores: Mapping[str, Tensor], fractions: Mapping[str, float]) -> dict[str, Tensor]:
    """0 for as many weights as the fractions ask for in all, those of smallest score in any layer; else 1."""
    count = sum(round(fractions[name] * score.numel()) for name, score in scores.items())
    flat = torch.cat([score.flatten() for score in scores.values()])
    mask = torch.ones_like(flat)
    mask[flat.argsort(stable=True)[:count]] = 0
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def mask_weight(layer: WeightedLayer, sparsity: Sparsity, scores: Tensor | None = None) -> None:
    """Zero weights of `layer`: a fraction of all, two of every four along the input dimension, or all below a threshold.

    The 2:4 pattern is that of NVIDIA's sparse tensor cores (Mishra et al. 2021, arXiv:2104.08378); the threshold, in standard
    deviations of the layer's weights, that of Han et al. 2015 (arXiv:1506.02626).

    Args:
        scores: the importance of each weight, shape of the weight; its magnitude by default. A threshold reads the magnitude.

    Raises:
        CompressionError: "2:4" on a weight whose input dimension is not a multiple of four, which is then left as it is.
    """
    weight = layer.weight.detach()
    scores = weight.abs() if scores is None else scores
    threshold = threshold_of(sparsity)
    if threshold is not None:
        prune.custom_from_mask(layer, "weight", (weight.abs() >= threshold * weight.std()).to(weight.dtype))
    elif sparsity == "2:4":
        prune.custom_from_mask(layer, "weight", two_of_four_mask(scores))
    else:
        prune.l1_unstructured(layer, "weight", amount=float(sparsity), importance_scores=scores)
    prune.remove(layer, "weight")  # the zeros stay; only the parametrisation goes


def two_of_four_mask(weight: Tensor) -> Tensor:
    """1 for the two largest magnitudes of every four weights along the flattened input dimensions, else 0.

    Args:
        weight: shape [out, in, ...]; in x kernel size must be a multiple of four.
    """
    rows = weight.reshape(weight.shape[0], -1)
    if rows.shape[1] % 4:
        raise CompressionError(f"2:4 sparsity needs an input dimension that is a multiple of 4, not {rows.shape[1]}")
    quads = rows.abs().reshape(-1, 4)
    mask = torch.zeros_like(quads).scatter_(1, quads.topk(2, dim=1).indices, 1.0)
    return mask.reshape(weight.shape)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, calibration: MapDataset, batch_size: int = 50) -> None:
    """Replace the running statistics of every batch-norm by cumulative averages over `calibration`, in place.

    Pruning shifts the statistics its survivors were normalised with (Li et al. 2020, EagleEye, arXiv:2007.02491).
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for batch in input_batches(calibration, batch_size, device_of_model(model)):
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _layer(model: nn.Module, name: str) -> WeightedLayer:
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, WeightedLayer) or type(layer) not in LAYER_KINDS:
        raise CompressionError(f"no layer {name!r} in the model")
    return layer
