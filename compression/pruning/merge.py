"""Channels merged instead of dropped: readers of a removed channel read the most similar remaining one instead.

Kim et al. 2020, "Neuron Merging", arXiv:2010.13160: a removed channel is close to a multiple of a kept one where their
weights point the same way, and a ReLU between them keeps the multiple.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...spaces.models.channel_graph import ChannelGraph
from ...spaces.models.layers import WeightedLayer
from ...spaces.models.recurrent import is_recurrent


@torch.no_grad()
def merge_channels(graph: ChannelGraph, name: str, lost: Sequence[int]) -> None:
    """Add the weights that read the channels `lost` of a group to those that read the most similar channels; removing them comes after.

    A channel without a similar one is dropped instead, and so are those that a grouped convolution reads and the units of a recurrent
    layer, which are no multiples of each other where their rows are.
    """
    if any(is_recurrent(maker) for maker in graph.makers(name)):
        return
    rows = _rows(graph, name)
    kept = sorted(set(range(len(rows))) - set(lost))
    likeness = functional.normalize(rows[list(lost)], dim=1) @ functional.normalize(rows[kept], dim=1).T
    nearest = likeness.argmax(1)
    partner = {
        channel: (kept[int(near)], float(rows[channel].norm() / rows[kept[int(near)]].norm()))
        for channel, near, like in zip(lost, nearest, likeness.max(1).values, strict=True)
        if like > 0
    }
    for reader, own, root in graph.readers(name):
        if isinstance(reader, WeightedLayer) and getattr(reader, "groups", 1) == 1:
            _redirect(reader.weight, own, root, partner)


def _redirect(weight: Tensor, own: Sequence[int], root: Sequence[int], partner: dict[int, tuple[int, float]]) -> None:
    """weight[:, kept] += ratio x weight[:, lost]; after a flattening a channel is several inputs, in the same order."""
    inputs: dict[int, list[int]] = {}
    for number, channel in zip(own, root, strict=True):
        inputs.setdefault(channel, []).append(number)
    original = weight.clone()
    for lost, (kept, ratio) in partner.items():
        for source, place in zip(inputs.get(lost, ()), inputs.get(kept, ()), strict=False):
            weight[:, place] += ratio * original[:, source]


def _rows(graph: ChannelGraph, name: str) -> Tensor:
    """The weights that compute each channel, shape [channels, inputs], times its batch-norm's scale."""
    makers = list(graph.makers(name))
    rows = torch.cat([m.weight.flatten(1) for m in makers if isinstance(m, WeightedLayer)], dim=1)
    norms = [m for m in makers if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.num_features == len(rows)]
    if len(norms) == 1 and norms[0].affine and norms[0].running_var is not None:
        scale = norms[0].weight / (norms[0].running_var + norms[0].eps).sqrt()
        rows = rows * scale[:, None]
    return rows
