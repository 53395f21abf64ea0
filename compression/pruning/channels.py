"""Structured pruning: removes channels and heads, those of the lowest importance first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.errors import CompressionError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...spaces.models.channel_graph import ChannelGraph, channels_lost, out_channels
from ...spaces.models.failures import ForwardPath, place_of
from .channel_lasso import lasso_scores
from .criteria import Criterion, Scoring, get_criterion
from .merge import merge_channels
from .reconstruct import reconstruct_channels


def remove_channels(
    model: nn.Module,
    example_input: Batch,
    kept: Mapping[str, int],
    criterion: str = "l2",
    scoring: Scoring = Scoring(),
    reduction: str = "drop",
    batches: Iterable[Batch] | None = None,
) -> None:
    """Prune `model` in place to `kept` channels or heads per group; the lowest importance is pruned first.

    Args:
        model: changed in place.
        example_input: shape [1, ...]; traces the dependencies.
        kept: group name, or that of any layer in it -> channels to keep; groups not named stay whole.
        criterion: a name of `criteria.criteria()`.
        scoring: what the criterion may use in addition to the weights.
        reduction: one of `pruning.REDUCTIONS`; what readers of a removed channel read instead.
        batches: inputs of the model, shape [batch, ...], of the calibration data; for "reconstruct" and "lasso".

    Raises:
        CompressionError: Torch-Pruning cannot prune the model, or left a number of channels other than asked for; the pruned model
            does not run, or takes a different path through its code; or there are no batches to reconstruct channels from.
    """
    if not kept:
        return
    graph, whole = ChannelGraph(model, example_input), _path_of(model, example_input)
    rule = get_criterion(criterion)
    kept = {graph.root_of(name): channels for name, channels in kept.items()}
    chosen = lasso_scores(graph, kept, _required(batches)) if reduction == "lasso" else {}
    lost = {name: _lost(graph, name, channels, rule, scoring, chosen.get(name)) for name, channels in kept.items()}
    _redirect_readers(graph, {name: lost[name] for name in lost if name not in graph.heads}, reduction, batches)
    graph.remove(lost)
    for name, channels in kept.items():
        left = _count(graph, name)
        if left != channels:
            raise CompressionError(f"{name}: {left} channels left instead of {channels}")
    if reason := whole.why_left(_path_of(model, example_input), model, example_input):
        raise CompressionError(f"with the channels that are left {reason}")


def _path_of(model: nn.Module, example_input: Batch) -> ForwardPath:
    """The path of a model.

    Raises:
        CompressionError: it does not run, as may be where blocks are removed, with which no group was proven.
    """
    try:
        return ForwardPath.of(model, example_input)
    except Exception as error:  # the model's own code may raise anything
        raise_if_interrupted(error)
        raise CompressionError(
            f"with the blocks and channels that are left forward fails in {place_of(error)}: {describe_exception(error)}"
        ) from error


def _redirect_readers(
    graph: ChannelGraph, lost: Mapping[str, list[int]], reduction: str, batches: Iterable[Batch] | None
) -> None:
    if reduction == "merge":
        for name, channels in lost.items():
            merge_channels(graph, name, channels)
    elif reduction in ("reconstruct", "lasso"):
        reconstruct_channels(graph, lost, _required(batches))


def _required(batches: Iterable[Batch] | None) -> Iterable[Batch]:
    if batches is None:
        raise CompressionError("reconstructing channels needs the calibration data of a workload")
    return batches


@torch.no_grad()
def _lost(
    graph: ChannelGraph, name: str, kept: int, rule: Criterion, scoring: Scoring, chosen: Tensor | None = None
) -> list[int]:
    """Channels or heads of a group to remove: the lowest `chosen` scores, or the criterion's where there are none."""
    if name in graph.heads:
        return channels_lost(rule.heads(graph.heads[name].weights(graph.model), name, scoring), kept)
    scores = rule.channels(graph.groups[name], name, scoring) if chosen is None else chosen
    return graph.least(name, scores.cpu(), kept)


def _count(graph: ChannelGraph, name: str) -> int:
    if name in graph.heads:
        return graph.heads[name].left_in(graph.model)
    return out_channels(graph.model.get_submodule(name))
