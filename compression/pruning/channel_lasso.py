"""Channels chosen by LASSO: those whose contributions to their readers' outputs the outputs can best do without.

He, Zhang and Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, section 3.1: a reader's output is
a sum over channels, each weighted by 1; under an L1 penalty on the weights those of the channels that others can make up for become 0
first. Where several layers read a group, their sums are chosen from together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.batch import Batch
from ...spaces.models.channel_graph import ChannelGraph, out_channels
from ...spaces.models.recurrent import is_recurrent

POSITIONS = 10
"""How many positions of a sample's output are read, as many as in the paper."""

WIDEST = 8192
"""The most inputs (channels x kernel) of a reader whose products fit into memory; wider readers have no say."""

Reader = nn.Conv1d | nn.Conv2d | nn.Linear


@torch.no_grad()
def lasso_scores(graph: ChannelGraph, kept: Mapping[str, int], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Group -> scores [channels] of which the highest `kept` are those that the LASSO chooses; groups that only heads, grouped or
    three-dimensional convolutions read are left out.

    Args:
        batches: inputs of the model, shape [batch, ...].
    """
    roles = {name: _readers(graph, name) for name in kept if name not in graph.heads}
    readers = {reader for found in roles.values() for reader, _, _ in found}
    products = _products(graph.model, readers, batches)
    scores = {}
    for name, found in roles.items():
        gram = torch.zeros((out_channels(graph.model.get_submodule(name)),) * 2, dtype=torch.float64)
        for reader, own, roots in found:
            part = products[reader][own][:, own]
            energy = part.sum().clamp_min(torch.finfo(part.dtype).tiny)  # of the reader's output without its bias
            gram += torch.zeros_like(gram).index_add_(0, roots, _columns(part, roots, len(gram)) / energy)
        if found and bool(gram.diagonal().any()):
            scores[name] = path_scores(gram, kept[name])
    return scores


def path_scores(gram: Tensor, kept: int) -> Tensor:
    """Scores [channels] of weights along the LASSO's path from 0: their size where at least `kept` are not 0, then how soon they came.

    Args:
        gram: products of the channels' contributions, shape [channels, channels]; their sum is what the weights shall reproduce.
    """
    from sklearn.linear_model import lars_path_gram  # only here: importing it takes a second

    used = gram.diagonal() > 0
    own = gram[used][:, used].numpy()
    path = lars_path_gram(own.sum(1), own, n_samples=1, method="lasso", max_iter=8 * len(own))[2]
    active = path != 0
    knot = next((k for k, count in enumerate(active.sum(0)) if count >= kept), active.shape[1] - 1)
    sooner = np.where(active.any(1), 1 / (1 + active.argmax(1)), 0.0)
    least = 1e-6 * float(np.abs(path[:, knot]).max())
    scores = torch.zeros(len(gram), dtype=torch.float64)
    scores[used] = torch.from_numpy(np.abs(path[:, knot]) + least * sooner)
    return scores


def _readers(graph: ChannelGraph, name: str) -> list[tuple[Reader, Tensor, Tensor]]:
    """(reader, its own numbers of the group's channels, the root's) of those whose output is a sum over channels.

    None of recurrent units, whose every step reads them before any layer does.
    """
    if any(is_recurrent(maker) for maker in graph.makers(name)):
        return []
    return [
        (reader, torch.tensor(own), torch.tensor(roots))
        for reader, own, roots in graph.readers(name)
        if isinstance(reader, Reader) and getattr(reader, "groups", 1) == 1
        and reader.weight[0].numel() <= WIDEST
    ]  # fmt: skip


def _columns(part: Tensor, roots: Tensor, channels: int) -> Tensor:
    """[own, own] -> [own, channels]: after a flattening a channel is several inputs."""
    return torch.zeros(len(part), channels, dtype=part.dtype).index_add_(1, roots, part)


def _products(model: nn.Module, readers: Iterable[Reader], batches: Iterable[Batch]) -> dict[Reader, Tensor]:
    """Reader -> products of its inputs' contributions to its outputs, summed over samples and positions, shape [inputs, inputs]."""
    grams: dict[Reader, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def watch(reader: Reader) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = _patches(reader, inputs[0], generator).double().cpu()
            grams[reader] = grams.get(reader, 0.0) + rows.T @ rows

        return hook

    hooks = [reader.register_forward_pre_hook(watch(reader)) for reader in readers]
    try:
        for batch in batches:
            model.eval()(batch)
    finally:
        for handle in hooks:
            handle.remove()
    return {reader: _summed(reader, gram) for reader, gram in grams.items()}


def _summed(reader: Reader, gram: Tensor) -> Tensor:
    """Sums over outputs and kernel of the products of contributions, from the Gram matrix of patches [inputs x kernel, ...]."""
    weight = reader.weight.detach().double().flatten(1).cpu()
    inputs = reader.weight.shape[1]
    return (gram * (weight.T @ weight)).view(inputs, -1, inputs, gram.shape[0] // inputs).sum((1, 3))


def _patches(reader: Reader, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """What a layer reads for some of its outputs' positions, shape [samples x positions, inputs x kernel]."""
    if isinstance(reader, nn.Linear):
        rows = inputs.flatten(1, -2) if inputs.ndim > 2 else inputs.unsqueeze(1)
    else:
        rows = _unfolded(reader, inputs)
    places = torch.randperm(rows.shape[1], generator=generator)[:POSITIONS].to(rows.device)
    return rows[:, places].flatten(0, 1)


def _unfolded(reader: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """[samples, positions, inputs x kernel]."""
    mode = "constant" if reader.padding_mode == "zeros" else reader.padding_mode
    images = functional.pad(inputs, reader._reversed_padding_repeated_twice, mode)
    kernel, dilation, stride = reader.kernel_size, reader.dilation, reader.stride
    if isinstance(reader, nn.Conv1d):
        images, kernel, dilation, stride = images.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    return functional.unfold(images, kernel, dilation=dilation, stride=stride).transpose(1, 2)
