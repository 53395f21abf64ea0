"""What the weights of recurrent layers add to the importance of a channel group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch_pruning.dependency import Group

from ...spaces.models.recurrent import channels_of, is_recurrent, summed_by_channel, weights_by_channel
from ...spaces.models.recurrent_trace import makes_units

Values = Callable[[Tensor], Tensor]
"""Weight -> what is summed over all of its elements that belong to a channel."""


def recurrent_scores(group: Group, values: Values) -> Tensor | None:
    """Magnitudes, shape [channels], of the sums of `values` over each matrix of a recurrent layer; None where the group has none.

    A hidden unit is scored by its rows in all gates and its columns (Wen et al. 2018, arXiv:1709.05027, section 3.3); a channel that a
    layer reads, by its columns.
    """
    channels = len(group[0].idxs)
    total, found = torch.zeros(channels), False
    for sums, own, roots in _sums(group, values):
        found = True
        total.index_add_(0, torch.tensor(list(roots)), sums.cpu().float().abs()[list(own)])
    return total if found else None


def _sums(group: Group, values: Values) -> Iterator[tuple[Tensor, Sequence[int], Sequence[int]]]:
    """(sums by the layer's own channels, its own numbers of the group's, the root's numbers of the same)."""
    for item in group:
        layer = item.dep.target.module
        if is_recurrent(layer):
            makes = makes_units(item.dep)
            of = channels_of(layer, makes)
            for weight, place in weights_by_channel(layer, makes):
                yield summed_by_channel(values(weight), place, of), item.idxs or (), item.root_idxs or ()
