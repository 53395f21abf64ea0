"""Channel reconstruction: readers of a removed channel read its least-squares approximation by the remaining channels.

He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, reconstruct a layer's output by least
squares once channels it reads are gone; Chee et al. 2022, "Model Preserving Compression for Neural Networks", arXiv:2108.00065, fold the
combination into the layer, which works after any activation, because only the layer's input counts. A principal component is a
combination of all channels and would have to be computed from all of them; the best combination of those kept costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import torch
from torch import Tensor

from ...core.batch import Batch
from ...spaces.models.channel_graph import ChannelGraph
from ...spaces.models.layers import WeightedLayer
from ..moments import moments_of
from .reconstruct_units import columns_gone, grams_of_columns

WIDEST = 8192
"""The most inputs of a reader whose moments fit into memory; channels of wider readers are dropped, not reconstructed."""

MOST_GRAMS = 2**29
"""Bytes of products of channels that are summed at once: of all layers of EfficientNetV2-M together they take 1.9 GB."""

LEAST_EIGENVALUE = 1e-9
"""Directions below this share of the largest eigenvalue are ignored, such as channels that are always 0."""


@torch.no_grad()
def reconstruct_channels(graph: ChannelGraph, lost: Mapping[str, Sequence[int]], batches: Iterable[Batch]) -> None:
    """Add the weights that read the channels `lost` of groups to those that read the others, by least squares over `batches`; removing
    them comes after. Recurrent layers read their own units too, of the step before. Channels that a grouped convolution reads are
    dropped instead.

    Args:
        batches: inputs of the model, shape [batch, ...].
    """
    gone, columns = _gone(graph, lost), columns_gone(graph, lost)
    parts = [*_parts(gone)]
    batches = list(batches) if columns or len(parts) > 1 else batches  # they are read several times
    grams = grams_of_columns(graph.model, batches) if columns else {}
    shares: dict[WeightedLayer, Tensor] = {}
    for readers in parts:  # all of the model as it is
        for reader, moments in moments_of(graph.model, readers, batches, "read").items():
            removed, kept = _split(reader, gone[reader])
            shares[reader] = combination(moments.gram, kept, removed).to(reader.weight.dtype)
    for reader, share in shares.items():
        removed, kept = _split(reader, gone[reader])
        reader.weight[:, kept] += torch.einsum("oi...,ki->ok...", reader.weight[:, removed], share)
    for weight, numbers in columns.items():
        removed, kept = sorted(numbers), sorted(set(range(weight.shape[1])) - numbers)
        weight[:, kept] += weight[:, removed] @ combination(grams[weight], kept, removed).to(weight.dtype).T


def _parts(readers: Iterable[WeightedLayer]) -> Iterator[list[WeightedLayer]]:
    """The readers in parts of which `MOST_GRAMS` holds the sums, of each part one pass over the data."""
    part, size = [], 0
    for reader in readers:
        own = 8 * reader.weight.shape[1] ** 2
        if part and size + own > MOST_GRAMS:
            yield part
            part, size = [], 0
        part.append(reader)
        size += own
    if part:
        yield part


def _split(reader: WeightedLayer, gone: Set[int]) -> tuple[list[int], list[int]]:
    """The channels that a reader loses, and those that it keeps."""
    return sorted(gone), sorted(set(range(reader.weight.shape[1])) - gone)


def combination(gram: Tensor, kept: Sequence[int], removed: Sequence[int]) -> Tensor:
    """[kept, removed]: how much of each kept channel approximates a removed one: the least-squares solution of least norm.

    Without a constant, which the zeros that a convolution pads with would not have.

    Args:
        gram: sum of the channels' products, shape [channels, channels].
    """
    inverse = torch.linalg.pinv(gram[kept][:, kept], rtol=LEAST_EIGENVALUE, hermitian=True)
    return inverse @ gram[kept][:, removed]


def _gone(graph: ChannelGraph, lost: Mapping[str, Sequence[int]]) -> dict[WeightedLayer, set[int]]:
    """Reader -> the channels that it loses in all groups it reads, by its own indices."""
    gone: dict[WeightedLayer, set[int]] = {}
    for name, channels in lost.items():
        for reader, own, root in graph.readers(name):
            if not isinstance(reader, WeightedLayer) or getattr(reader, "groups", 1) > 1:
                continue
            if reader.weight.shape[1] <= WIDEST:
                numbers = {number for number, channel in zip(own, root, strict=True) if channel in set(channels)}
                gone.setdefault(reader, set()).update(numbers)
    return gone
