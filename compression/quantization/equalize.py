"""Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1): scales the channels between two
layers so that their ranges on either side are equal, which changes no output of the float model.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ...core.batch import Batch, repeated
from ...spaces.models.exported_graph import WEIGHTED, module_path, under_first_paths
from .captured import capturing

aten = torch.ops.aten
FLATTEN = aten.flatten.using_ints
HOMOGENEOUS = {
    aten.relu.default, aten.relu_.default, aten.dropout.default, aten.dropout_.default, aten.max_pool2d.default,
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, FLATTEN,
}  # fmt: skip
"""Channel-wise operations for which f(s x) = s f(x) where s > 0."""

SWEEPS = 4
"""The number of passes over the pairs: a layer between two others is scaled with both."""


@torch.no_grad()
def equalize(model: nn.Module, example_input: Batch) -> list[tuple[str, str]]:
    """Equalise `model`, batch-norm folded, in place; returns the pairs of layers that were equalised, (first, second).

    With r1 the largest weight that makes a channel and r2 the largest that reads it, the first layer's weights are divided by
    s = sqrt(r1 / r2) and the second's multiplied by it. Channels without weights on either side stay as they are.

    Raises:
        CompressionError: torch.export cannot take the model.
    """
    with capturing():
        exported = torch.export.export(model.eval(), (repeated(example_input, 2),))
    pairs = layer_pairs(under_first_paths(cast("fx.GraphModule", exported.module()), model).graph)
    for _ in range(SWEEPS):
        for first, second in pairs:
            _balance(cast("Any", model.get_submodule(first)), cast("Any", model.get_submodule(second)))
    return pairs


def layer_pairs(graph: fx.Graph) -> list[tuple[str, str]]:
    """(first, second) of all layers that run once, where only the second reads the first, through `HOMOGENEOUS` operations."""
    runs = Counter(module_path(node) for node in graph.nodes if node.target in WEIGHTED)
    found = []
    for node in graph.nodes:
        if node.target in WEIGHTED and (reader := _reader(node)) is not None:
            pair = module_path(node), module_path(reader)
            if all(runs[name] == 1 for name in pair):
                found.append(pair)
    return found


def _reader(layer: fx.Node) -> fx.Node | None:
    """The layer that reads `layer`'s channels, if it is the only one and only homogeneous operations come between."""
    node, is_flat = layer, False
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target in WEIGHTED:
            return node if _fits(layer, node, is_flat) else None
        if node.target not in HOMOGENEOUS:
            return None
        is_flat |= node.target is FLATTEN
    return None


def _fits(first: fx.Node, second: fx.Node, is_flat: bool) -> bool:
    """Whether the second layer's inputs are the first one's outputs, each once or, flattened, as a run."""
    channels = first.meta["val"].shape[-1 if first.target is aten.linear.default else 1]
    weight = cast("fx.Node", second.args[1]).meta["val"]
    inputs = weight.shape[1]
    if second.target is aten.linear.default:
        return inputs % channels == 0 and is_flat == (first.target is not aten.linear.default)
    depthwise = inputs == 1 and weight.shape[0] % channels == 0
    return first.target is not aten.linear.default and not is_flat and (inputs == channels or depthwise)


def _balance(first: Any, second: Any) -> None:
    channels = len(first.weight)
    reads = _by_channel(second, channels)
    made, read = first.weight.flatten(1).abs().amax(1), reads.abs().amax((0, 2))
    scale = torch.where((made > 0) & (read > 0), (made / read.clamp_min(1e-30)).sqrt(), 1.0)
    first.weight.div_(scale.reshape(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(scale)
    reads.mul_(scale[None, :, None])


def _by_channel(layer: Any, channels: int) -> Tensor:
    """A view of the weight [rows, channels it reads, weights]; that of a depthwise convolution has one row."""
    is_depthwise = getattr(layer, "groups", 1) > 1
    return layer.weight.data.view(1 if is_depthwise else len(layer.weight), channels, -1)
