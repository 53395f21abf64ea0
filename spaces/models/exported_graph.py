"""What the nodes of a `torch.export` graph stand for: layers, batch-norms, additions of computed tensors, constants."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
WEIGHTED = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default}
"""Operations that a layer becomes."""

ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
PASSED_ON = {
    "dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy",
}  # fmt: skip
"""Operations that give back what they were given, in evaluation mode; exporters leave them out."""


def module_path(node: fx.Node) -> str:
    """Dotted path of the module whose forward made `node`; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("L['self'].").removeprefix("L['self']") if stack else ""


def under_first_paths(exported: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The graph with every run of a module that `model` holds under several paths ascribed to the first of them, in place."""
    first: dict[nn.Module, str] = {}
    others: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(module, path) != path:
            others[path] = first[module]
    for node in exported.graph.nodes if others else ():
        if (path := others.get(module_path(node))) is not None:
            *outer, (key, (_, kind)) = node.meta["nn_module_stack"].items()
            node.meta["nn_module_stack"] = dict([*outer, (f"{key}@1", (path, kind))])
    return exported


def runs_again(node: fx.Node) -> bool:
    """Whether the module that made `node` had run before in the same pass."""
    return "@" in next(reversed(node.meta.get("nn_module_stack", {})), "")  # the exporter numbers its later runs


def residual_additions(graph: fx.Graph) -> list[fx.Node]:
    """Additions of two computed tensors, in the order they run.

    A tensor is computed if it depends on the model's input and is not that input itself: what depends on nothing but
    parameters is a constant to every exporter.
    """
    given: set[fx.Node] = set()
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        sources = set(node.all_input_nodes)
        if node.op == "placeholder" or (_passes_on(node) and sources & given):
            given.add(node)
        elif sources & (given | computed):
            computed.add(node)
    return [node for node in graph.nodes if node.target in ADDITIONS and computed.issuperset(node.args[:2])]


def _passes_on(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", "").partition(".")[0]
    is_observer = node.op == "call_module"  # nothing else is one there
    return is_observer or name in PASSED_ON or name.startswith(("quantize_per_", "dequantize_per_"))


def is_folded(norm: fx.Node) -> bool:
    """Whether this batch-norm is folded into the layer before it, here and where candidates are lowered."""
    layer = cast("fx.Node", norm.args[0])
    if None in norm.args[3:5]:  # it has no statistics of its own and computes them of each batch
        return False
    if layer.target is aten.linear.default and (layer.meta["val"].ndim > 2 or norm.args[1] is None):
        return False
    if layer.target not in WEIGHTED or len(layer.users) > 1:
        return False
    stored = [cast("fx.Node", node) for node in layer.args[1:3] if node is not None]  # else computed in every pass
    return len(stored[0].users) == 1 and all(node.op == "get_attr" for node in stored)


def folded_in(graph: fx.Graph) -> tuple[dict[str, str], set[str]]:
    """{layer: batch-norm} of those that are folded into the layer before them; the batch-norms that also run after something else, or
    whose statistics another module reads."""
    norms = graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    folded = {module_path(cast("fx.Node", norm.args[0])): _owner(norm) for norm in norms if is_folded(norm)}
    return folded, {_owner(norm) for norm in norms if not is_folded(norm) or module_path(norm) != _owner(norm)}


def _owner(norm: fx.Node) -> str:
    """Path of the module that has a batch-norm's statistics, which it runs itself unless a user's forward does."""
    statistics = norm.args[3]
    return str(statistics.target).rpartition(".")[0] if isinstance(statistics, fx.Node) else module_path(norm)


def scale_and_shift(exported: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Batch-norm in evaluation mode is scale x input + shift; both have shape [1, channels, 1, ...]."""
    weight, bias, mean, variance = (0.0 if value is None else constant(exported, value) for value in norm.args[1:5])
    scale = (1.0 if norm.args[1] is None else weight) / np.sqrt(variance + cast("float", norm.args[7]))
    shift = bias - mean * scale
    shape = [1, -1, *[1] * (norm.meta["val"].ndim - 2)]
    scale, shift = (torch.from_numpy(values.astype(np.float32)).reshape(shape) for values in (scale, shift))
    return scale, shift


def constant(graph: fx.GraphModule, value: object) -> np.ndarray:
    """The constant that a node stands for, or a plain number as an array."""
    if isinstance(value, fx.Node):
        owner, _, name = str(value.target).rpartition(".")
        return getattr(graph.get_submodule(owner), name).detach().cpu().numpy()
    return np.asarray(value)
