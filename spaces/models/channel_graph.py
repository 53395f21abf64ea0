"""Which channels of which modules go together, and their removal: the dependency graph of Torch-Pruning (DepGraph,
Fang et al. 2023, arXiv:2301.12900), with attention as one node and with every group's channels in its root's numbering.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch_pruning import ops
from torch_pruning.dependency import Group, constants, index_mapping, shape_infer
from torch_pruning.dependency import graph as dependency_graph

from ...core.errors import CompressionError
from ...core.interrupts import raise_if_interrupted

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SHUFFLED_DIMENSIONS = 5
"""A view of images with so many dimensions takes their channels apart, as ShuffleNet does (arXiv:1807.11164)."""

FRAMES_PER_NODE = 4
"""More calls than Torch-Pruning and the memory of its answers nest for each node they walk through."""

_walking = threading.Lock()
"""Held while the limits of Torch-Pruning and Python are lifted, which are those of the whole process."""

_WITHOUT_WEIGHTS = {
    ops.OPTYPE.CONCAT, ops.OPTYPE.SPLIT, ops.OPTYPE.RESHAPE, ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.SLICE,
    ops.OPTYPE.UNBIND, ops.OPTYPE.EXPAND,
}  # fmt: skip


@runtime_checkable
class HeadedAttention(Protocol):
    """Self-attention whose heads can be taken out, such as `workloads.attention.SelfAttention`.

    Its first input and first output are the same shape; `in_proj` reads the one, `out_proj` makes the other.
    """

    num_heads: int
    in_proj: nn.Linear
    out_proj: nn.Linear

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Take out every head but `kept`, in place."""
        ...


@dataclass(frozen=True)
class Role:
    """A part of the model that makes or reads channels of a group.

    Attributes:
        path: of a module, or of a parameter.
        makes: whether it loses them from what it makes, else from what it reads.
        own, roots: its own numbers of the channels, and the root's numbers of the same.
        dim: that a parameter's channels are along; None for a module.
    """

    path: str
    makes: bool
    own: tuple[int, ...]
    roots: tuple[int, ...]
    dim: int | None = None


class _AttentionPruner(tp.BasePruningFunc):
    """Torch-Pruning's handler of a `HeadedAttention`: the channels it reads and those it makes are pruned apart."""

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        tp.prune_linear_in_channels(layer.in_proj, idxs)
        return layer

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        tp.prune_linear_out_channels(layer.out_proj, idxs)
        return layer

    def get_in_channels(self, layer: Any) -> int:
        return layer.in_proj.in_features

    def get_out_channels(self, layer: Any) -> int:
        return layer.out_proj.out_features


class _IndexedGroup(Group):
    """A group that looks up what it holds, where Torch-Pruning's reads all of it for every operation that is visited."""

    def __init__(self) -> None:
        super().__init__()
        self._channels: defaultdict[tuple[Any, Any], list[Any]] = defaultdict(list)

    def add_dep(self, dep: Any, idxs: Any) -> None:
        super().add_dep(dep, idxs)
        self._channels[dep.target, dep.handler].append(idxs)

    def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
        return idxs in self._channels[dep.target, dep.handler]


class _Graph(tp.DependencyGraph):
    """Torch-Pruning's graph, which follows channels through views of more than four dimensions without numbering them.

    Attributes:
        shuffles: nodes behind or before such a view, up to the next layer; channels have other numbers there.
    """

    def _build_dependency(self, module2node: Mapping[Any, Any]) -> None:
        nodes = module2node.values()
        views = [node for node in nodes if node.type == ops.OPTYPE.RESHAPE and _dimensions(node) >= SHUFFLED_DIMENSIONS]
        self.shuffles = _between_layers(views)
        for node in self.shuffles:
            node.type = ops.OPTYPE.ELEMENTWISE
        super()._build_dependency(module2node)
        sys.setrecursionlimit(sys.getrecursionlimit() + FRAMES_PER_NODE * len(module2node))


class ChannelGraph:
    """The coupled channels of a model, and their removal in place.

    Args:
        model: put into eval mode; changed by `remove` alone.
        example_input: shape [1, ...]; traces the dependencies.

    Attributes:
        groups: name of the root layer -> Torch-Pruning's group of all its channels, in module order.
        heads: path -> attention whose heads can be taken out.
        names: module -> its path.

    Raises:
        CompressionError: Torch-Pruning cannot trace the model.
    """

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        self.model = model.eval()
        self.names = {module: name for name, module in model.named_modules()}
        self.heads = {name: module for name, module in model.named_modules() if isinstance(module, HeadedAttention)}
        self._graph = _Graph()
        kinds = {type(attention): _AttentionPruner() for attention in self.heads.values()}
        try:
            with _traceable(model, self.heads.values()), _walks_of_any_length():  # type: ignore[arg-type]
                # Left to call the model itself, it swallows whatever that raises, Ctrl-C too, and calls it again wrongly.
                self._graph.build_dependency(
                    model, example_input, forward_fn=nn.Module.__call__, customized_pruners=kinds, verbose=False  # type: ignore[arg-type]
                )  # fmt: skip
                found = list(self._graph.get_all_groups(root_module_types=(ops.TORCH_CONV, ops.TORCH_LINEAR)))
        except Exception as error:  # it fails with whatever its tracing meets on an architecture it does not know
            raise_if_interrupted(error)
            raise CompressionError(f"Torch-Pruning failed: {first_line(error)}") from error
        order = {name: index for index, name in enumerate(self.names.values())}
        roots = {self.names[group[0].dep.target.module]: group for group in found}
        self.groups: dict[str, Group] = dict(sorted(roots.items(), key=lambda item: order[item[0]]))

    def root_of(self, name: str) -> str:
        """The group that a layer of this name makes channels of, under its root's name; an attention's is its own.

        Raises:
            CompressionError: there is none.
        """
        if name in self.groups or name in self.heads:
            return name
        for root in self.groups:
            if any(self.names[maker] == name for maker in self.makers(root) if maker in self.names):
                return root
        raise CompressionError(f"no channel group {name!r} in the model")

    def makers(self, name: str) -> Iterator[nn.Module]:
        """The modules of a group that make its channels, the root first; an attention stands for its `out_proj`."""
        for dep, _ in self.groups[name]:
            if self._graph.is_out_channel_pruning_fn(dep.handler):
                module = dep.target.module
                yield module.out_proj if isinstance(module, HeadedAttention) else module

    def readers(self, name: str) -> Iterator[tuple[nn.Module, list[int], list[int]]]:
        """(module that reads the group's channels, its own numbers of them, the root's numbers of the same)."""
        group = self.groups[name]
        for item in group:
            if not self._graph.is_out_channel_pruning_fn(item.dep.handler):
                module = item.dep.target.module
                yield module.in_proj if isinstance(module, HeadedAttention) else module, item.idxs, item.root_idxs  # type: ignore[misc]

    def roles(self, name: str) -> Iterator[Role]:
        """What every module and parameter with a path does with the group's channels; views and additions are left out."""
        for item in self.groups[name]:
            target, makes = item.dep.target, self._graph.is_out_channel_pruning_fn(item.dep.handler)
            module, dim = target.module, None
            if isinstance(module, HeadedAttention):
                module = module.out_proj if makes else module.in_proj
            if target.type == ops.OPTYPE.PARAMETER:
                path, dim = self._graph._param_to_name[module], target.pruning_dim
            elif (path := self.names.get(module)) is None:  # an operation without a module
                continue
            yield Role(path, makes, tuple(item.idxs), tuple(item.root_idxs), dim)  # type: ignore[arg-type]

    def is_shuffled(self, name: str) -> bool:
        """Whether a view takes the group's channels apart, after which their numbers are others."""
        return any(dep.target in self._graph.shuffles for dep, _ in self.groups[name])

    def parametrized(self, name: str) -> str | None:
        """A module of the group whose weight `torch.nn.utils.parametrize` computes from others in every pass."""
        modules = (dep.target.module for dep, _ in self.groups[name])
        return next((self.names[m] for m in modules if isinstance(m, nn.Module) and is_parametrized(m)), None)

    def partitions(self, name: str) -> int:
        """Into how many equal parts grouped convolutions and group norms divide the channels; each loses as many."""
        parts = 1
        for dep, _ in self.groups[name]:
            module = dep.target.module
            if isinstance(module, nn.GroupNorm):
                parts = math.lcm(parts, module.num_groups)
            # A depthwise convolution has as many groups as channels, and loses both alike.
            elif isinstance(module, CONVOLUTIONS) and module.groups != module.out_channels:
                parts = math.lcm(parts, module.groups)
        return parts

    def any_channels(self, name: str, kept: int) -> list[int]:
        """Channels, or heads, of a group to remove so that `kept` are left: the first ones, of every partition as many."""
        if name in self.heads:
            return list(range(self.heads[name].num_heads - kept))
        channels = out_channels(self.model.get_submodule(name))
        return channels_lost(torch.zeros(channels), kept, self.partitions(name))

    def remove(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Remove channels, numbered as in their root, and heads; the graph is of no use afterwards (`without` keeps it).

        Raises:
            CompressionError: a module cannot lose them.
        """
        losses: dict[tuple[Any, Any], tuple[Any, set[int]]] = {}
        for name in (name for name in channels if name not in self.heads):
            gone = set(channels[name])
            for item in self.groups[name]:
                own = {i for i, root in zip(item.idxs, item.root_idxs, strict=True) if root in gone}  # type: ignore[arg-type]
                losses.setdefault((item.dep.target, item.dep.handler), (item.dep, set()))[1].update(own)
        try:
            for dep, own in losses.values():
                self._remove(dep, sorted(own))
            for name in (name for name in channels if name in self.heads):
                self.heads[name].keep_heads(sorted(set(range(self.heads[name].num_heads)) - set(channels[name])))
        except Exception as error:  # as in tracing
            raise_if_interrupted(error)
            raise CompressionError(f"Torch-Pruning failed: {first_line(error)}") from error

    @contextmanager
    def without(self, channels: Mapping[str, Iterable[int]]) -> Iterator[nn.Module]:
        """The model without these channels and heads, as `remove` leaves it; whole again afterwards, at the cost of no copy.

        Raises:
            CompressionError: a module cannot lose them.
        """
        changed = {*self.model.modules(), *(op for op in self._graph.module2node if isinstance(op, nn.Module))}
        before = [_Attributes(module) for module in changed]
        try:
            self.remove(channels)
            yield self.model
        finally:
            for attributes in before:
                attributes.restore()

    def _remove(self, dep: Any, channels: list[int]) -> None:
        if dep.target.type != ops.OPTYPE.PARAMETER:
            dep(channels)
            return
        owner, _, name = self._graph._param_to_name[dep.target.module].rpartition(".")
        setattr(self.model.get_submodule(owner), name, dep(channels))


class _Attributes:
    """What a module's attributes are, to be given back to it; tensors are not copied, since pruning makes new ones."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = {
            name: value.copy() if type(value) is list else value
            for name, value in vars(module).items()  # Torch-Pruning counts down the lists of its own modules in place
        }
        self._held = {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")}
        own = [*module._parameters.values(), *module._buffers.values()]
        self._data = [(tensor, tensor.data) for tensor in own if tensor is not None]

    def restore(self) -> None:
        vars(self._module).clear()
        vars(self._module).update(self._values)
        for name, held in self._held.items():
            vars(self._module)[name].clear()
            vars(self._module)[name].update(held)
        for tensor, data in self._data:
            tensor.data = data  # `keep_heads` may cut the tensors that are there, instead of making new ones


def channels_lost(scores: Tensor, kept: int, partitions: int = 1) -> list[int]:
    """Numbers of the channels of smallest score; of several partitions each loses the same, by their mean score.

    Args:
        scores: shape [channels].
        kept: how many are left, a multiple of `partitions`.
    """
    parts = scores.reshape(partitions, -1)
    size = parts.shape[1]
    order = parts.mean(0).argsort(stable=True)[: size - kept // partitions].tolist()
    return sorted(part * size + channel for part in range(partitions) for channel in order)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_channels(module: nn.Module) -> int:
    """Channels a convolution or linear layer makes."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels  # type: ignore[return-value]


@contextmanager
def _traceable(model: nn.Module, attentions: Iterable[nn.Module]) -> Iterator[None]:
    """Have gradients recorded through every parameter, and every attention stand as one operation on its input."""

    def one_operation(_module: nn.Module, args: tuple, options: dict, output: Any) -> Any:
        tokens = next(iter((*args, *options.values()))) * 1
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    hooks = [module.register_forward_hook(one_operation, with_kwargs=True) for module in attentions]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for hook in hooks:
            hook.remove()


@contextmanager
def _walks_of_any_length() -> Iterator[None]:
    """Have Torch-Pruning follow channels however many operations lie between two layers, and say so where it gives up.

    It looks for the next layer by recursion, which it ends after 500 nodes with a warning and another answer: a recurrent
    layer of 17 steps is longer. Here the limit is Python's own, which `_Graph` raises by the size of the graph, and what was
    found for a node is kept, so that a walk sees each node once. Groups are indexed.
    """
    limit = sys.getrecursionlimit()
    with _walking, warnings.catch_warnings():
        warnings.filterwarnings("error", "Maximum recursive depth")
        try:
            with (
                _replaced(constants, "MAX_RECURSION_DEPTH", math.inf),
                _replaced(dependency_graph, "Group", _IndexedGroup),
                _replaced(index_mapping, "update_index_mapping", _mapped_twice(index_mapping.update_index_mapping)),
            ):
                yield
        finally:
            sys.setrecursionlimit(limit)


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
