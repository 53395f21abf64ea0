"""Channels read off those that are kept: what reads a removed channel reads the combination of kept ones nearest to it.

He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, reconstruct a layer's output by least
squares once channels it reads are gone; Chee et al. 2022, "Model Preserving Compression for Neural Networks", arXiv:2108.00065, fold the
combination into the layer, which works behind any activation, as only what is read counts. A principal component is a
combination of all channels and would have to be computed from all of them; the best combination of those kept costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ...spaces.models.channel_graph import ChannelGraph
from ...spaces.models.layers import WeightedLayer
from ..moments import moments_of

WIDEST = 8192
"""Inputs of a reader beyond which its moments would not fit into memory; what it reads is dropped, not reconstructed."""

LEAST_EIGENVALUE = 1e-9
"""Directions of less than this share of the strongest are taken as not there at all: channels that are always 0."""


@torch.no_grad()
def reconstruct_channels(graph: ChannelGraph, lost: Mapping[str, Sequence[int]], batches: Iterable[Tensor]) -> None:
    """Add what reads the channels `lost` of groups to what reads the others, by least squares over `batches`; the channels
    stay, to be removed. What a grouped convolution reads is left to be dropped.

    Args:
        batches: inputs of the model, shape [batch, ...].
    """
    gone = _gone(graph, lost)
    for reader, moments in moments_of(graph.model, gone, batches, "read").items():
        weight = reader.weight
        removed = sorted(gone[reader])
        kept = sorted(set(range(weight.shape[1])) - gone[reader])
        share = combination(moments.gram, kept, removed).to(weight.dtype)
        weight[:, kept] += torch.einsum("oi...,ki->ok...", weight[:, removed], share)


def combination(gram: Tensor, kept: Sequence[int], removed: Sequence[int]) -> Tensor:
    """[kept, removed]: how much of each kept channel stands for a removed one, the least squares of least norm.

    Without a constant, which the zeros that a convolution pads with would not have.

    Args:
        gram: sum of the channels' products, shape [channels, channels].
    """
    inverse = torch.linalg.pinv(gram[kept][:, kept], rtol=LEAST_EIGENVALUE, hermitian=True)
    return inverse @ gram[kept][:, removed]


def _gone(graph: ChannelGraph, lost: Mapping[str, Sequence[int]]) -> dict[WeightedLayer, set[int]]:
    """Reader -> its own numbers of the channels it loses, in all groups it reads."""
    gone: dict[WeightedLayer, set[int]] = {}
    for name, channels in lost.items():
        for reader, own, root in graph.readers(name):
            if not isinstance(reader, WeightedLayer) or getattr(reader, "groups", 1) > 1:
                continue
            if reader.weight.shape[1] <= WIDEST:
                numbers = {number for number, channel in zip(own, root, strict=True) if channel in set(channels)}
                gone.setdefault(reader, set()).update(numbers)
    return gone
