"""Torch-Pruning's dependency graph (DepGraph, Fang et al. 2023, arXiv:2301.12900), cut at attentions whose heads are known, with channels
followed through any view, and no limit on the length of a walk.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.dependency import Group, constants, index_mapping, shape_infer
from torch_pruning.dependency import graph as dependency_graph

from ...core.batch import Batch
from ...core.hooks import removed_after
from .architecture import every_output
from .attention.heads import Heads
from .attention.influence import trainable
from .recurrent import is_recurrent
from .recurrent_trace import RecurrentPruner, outputs_as_called, units_alone

SHUFFLED_DIMENSIONS = 5
"""A view of images with so many dimensions takes their channels apart, as ShuffleNet does (arXiv:1807.11164)."""

MOST_TIMES = 8
"""How many times the channels of the widest layer an operation may seem to have before a group is given up: where products, views and
splits are nested, Torch-Pruning multiplies channels at each of them."""

FRAMES_PER_NODE = 4
"""More calls than Torch-Pruning and the memory of its answers nest for each node they walk through."""

_walking = threading.Lock()
"""Held while the limits of Torch-Pruning and Python are lifted, which are those of the whole process."""

_WITHOUT_WEIGHTS = {
    ops.OPTYPE.CONCAT, ops.OPTYPE.SPLIT, ops.OPTYPE.RESHAPE, ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.SLICE,
    ops.OPTYPE.UNBIND, ops.OPTYPE.EXPAND,
}  # fmt: skip


class _Entangled(Exception):
    """A channel is followed to more channels of one operation than any has."""


class _IndexedGroup(Group):
    """A group that looks up what it holds, where Torch-Pruning's reads all of it for every operation that is visited.

    Channels are followed one by one: where all of some have been at an operation before, in whatever company, nothing new follows.

    Raises:
        _Entangled: when an operation is added.
    """

    def __init__(self, widest: int) -> None:
        super().__init__()
        self._most = MOST_TIMES * widest
        self._channels: defaultdict[tuple[Any, Any], set[Any]] = defaultdict(set)

    def add_dep(self, dep: Any, idxs: Any) -> None:
        known = self._channels[dep.target, dep.handler]
        known.update((channel.idx, channel.root_idx) for channel in idxs)
        if max(len(known), len(idxs)) > self._most:
            raise _Entangled
        super().add_dep(dep, idxs)

    def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
        known = self._channels[dep.target, dep.handler]
        return all((channel.idx, channel.root_idx) in known for channel in idxs)


class DependencyGraph(tp.DependencyGraph):
    """Torch-Pruning's graph, which follows channels through views of more than four dimensions without numbering them.

    Attributes:
        shuffles: nodes after or before such a view, up to the next layer; channels have other numbers there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pruners: dict[Any, Any] = {}

    def get_pruner_of_module(self, module: Any) -> Any:
        """As Torch-Pruning's, which holds a module against twenty classes at each step of a walk: here, once."""
        if module not in self._pruners:
            self._pruners[module] = super().get_pruner_of_module(module)
        return self._pruners[module]

    def _build_dependency(self, module2node: Mapping[Any, Any]) -> None:
        nodes = module2node.values()
        views = [node for node in nodes if node.type == ops.OPTYPE.RESHAPE and _dimensions(node) >= SHUFFLED_DIMENSIONS]
        self.shuffles = _between_layers(views)
        for node in self.shuffles:
            node.type = ops.OPTYPE.ELEMENTWISE
        super()._build_dependency(module2node)
        sys.setrecursionlimit(sys.getrecursionlimit() + FRAMES_PER_NODE * len(module2node))


def traced(
    model: nn.Module, example_input: Batch, attentions: Sequence[Heads] = ()
) -> tuple[DependencyGraph, list[Group]]:
    """The dependency graph of a model, and its groups of coupled channels but those inside attentions.

    Args:
        model: in eval mode.
        example_input: shape [1, ...]; traces the dependencies.
        attentions: those whose heads are known.

    Raises:
        Exception: whatever Torch-Pruning's tracing meets on an architecture that it does not know.
    """
    graph = DependencyGraph()
    inside = {model.get_submodule(path) for heads in attentions for path in heads.made}
    recurrent: list[Any] = [module for module in model.modules() if is_recurrent(module)]
    kinds: dict[Any, Any] = {type(layer): RecurrentPruner() for layer in recurrent}
    roots = [ops.TORCH_CONV, ops.TORCH_LINEAR, *{type(layer) for layer in recurrent}]
    made: list[Tensor] = []

    # Left to call the model itself, Torch-Pruning swallows what that raises, Ctrl-C too.
    def forward(model: nn.Module, example_input: Any) -> Any:
        with outputs_as_called(recurrent), _cut(model, attentions, made), every_output(model):
            return model(example_input), *made

    # Nothing is differentiated: what the graph would hold for that, all activations of a pass, is dropped.
    nothing_saved = torch.autograd.graph.saved_tensors_hooks(lambda _: None, _not_saved)
    with (
        trainable(model),
        torch.enable_grad(),
        units_alone(recurrent),
        _walks_of_any_length(_widest(model)),
        nothing_saved,
    ):
        graph.build_dependency(model, example_input, forward_fn=forward, customized_pruners=kinds, verbose=False)
        groups = _groups(graph, tuple(roots))
        return graph, [group for group in groups if group[0].dep.target.module not in inside]


def _not_saved(_: None) -> Tensor:
    raise AssertionError("a graph of dependencies is never differentiated")


def _groups(graph: DependencyGraph, kinds: tuple[type[nn.Module], ...]) -> Iterator[Group]:
    """The groups of coupled channels, each under the first layer of these kinds that makes them; entangled ones are left out."""
    done: set[nn.Module] = set()
    for module in [own for own in graph.module2node if isinstance(own, kinds)]:
        pruner = graph.get_pruner_of_module(module)
        if module in done or pruner is None or (channels := pruner.get_out_channels(module)) is None:
            continue
        try:
            group = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(channels)))
        except _Entangled:
            continue
        done.update(dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler))
        yield group


@contextmanager
def _cut(model: nn.Module, attentions: Iterable[Heads], made: list[Tensor]) -> Iterator[None]:
    """Have no channel of queries, keys and values lead into the output of an attention; they go to `made`."""

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        made.append(output)

    hooks = []
    for heads in attentions:
        for path in heads.read:
            module = model.get_submodule(path)
            if path not in heads.made:
                hooks.append(module.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:])))
        for path in heads.made:
            hooks.append(model.get_submodule(path).register_forward_hook(keep))
    with removed_after(hooks):
        yield


@contextmanager
def _walks_of_any_length(widest: int) -> Iterator[None]:
    """Have Torch-Pruning follow channels however many operations lie between two layers, and say so where it gives up.

    It looks for the next layer by recursion, which it ends after 500 nodes with a warning and another answer: a recurrent
    layer of 17 steps is longer. Here the limit is Python's own, which `DependencyGraph` raises by the size of the graph, and what was
    found for a node is kept, so that a walk sees each node once. Groups are indexed.
    """
    limit = sys.getrecursionlimit()
    with _walking, warnings.catch_warnings():
        warnings.filterwarnings("error", "Maximum recursive depth")
        try:
            with (
                _replaced(constants, "MAX_RECURSION_DEPTH", math.inf),
                _replaced(dependency_graph, "Group", partial(_IndexedGroup, widest)),
                _replaced(index_mapping, "update_index_mapping", _mapped_twice(index_mapping.update_index_mapping)),
            ):
                yield
        finally:
            sys.setrecursionlimit(limit)


def _widest(model: nn.Module) -> int:
    """The largest dimension of any parameter: no layer makes or reads more channels."""
    return max((size for parameter in model.parameters() for size in parameter.shape), default=0)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have an attribute be `value` for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _mapped_twice(update: Callable[[Any], None]) -> Callable[[Any], None]:
    """`update` once when the graph is built and once when its first group is read; later ones would change nothing.

    What the first finds, the sizes of concatenations, the second may read.
    """
    runs = 0

    def remembering(graph: Any) -> None:
        nonlocal runs
        runs += 1
        if runs > 2:
            return
        inputs, outputs = shape_infer.infer_in_channels_recursively, shape_infer.infer_out_channels_recursively
        with (
            _replaced(shape_infer, "infer_in_channels_recursively", _remembered(inputs)),
            _replaced(shape_infer, "infer_out_channels_recursively", _remembered(outputs)),
        ):
            update(graph)

    return remembering


def _remembered(infer: Callable[[Any, Any, list[int]], int | None]) -> Callable[[Any, Any, list[int]], int | None]:
    found: dict[Any, int | None] = {}

    def once(graph: Any, node: Any, recursive_depth: list[int]) -> int | None:
        if node not in found:
            found[node] = infer(graph, node, recursive_depth)
        return found[node]

    return once


def _between_layers(nodes: Iterable[Any]) -> set[Any]:
    """These nodes and all that concatenate, split, view or add to what they read or make, up to the next layers."""
    found: set[Any] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in found or node.type not in _WITHOUT_WEIGHTS:
            continue
        found.add(node)
        waiting += [*node.inputs, *node.outputs]
    return found


def _dimensions(node: Any) -> int:
    """Of the tensor a view reads or makes, whichever has more."""
    grad_fn = node.grad_fn
    sizes = getattr(grad_fn, "_saved_self_sym_sizes", None) or getattr(grad_fn, "_saved_self_sizes", ())
    made = [metadata.shape for metadata in getattr(grad_fn, "_input_metadata", ())]
    return max(map(len, (sizes, *made)), default=0)
