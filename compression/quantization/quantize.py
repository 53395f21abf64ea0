"""Post-training quantization per layer at the policy's bits, by torchao's PT2E with a quantizer of our own.

Weights are symmetric per output channel in an int8 container, or have grids by groups of inputs (`weight_grids`); activations are affine per tensor in a uint8 container,
calibrated as `observers` says. Grids below 8 bits use part of the container, which is what runtimes have
integer kernels for. Both operands of a residual addition are put on 8-bit grids where every layer feeding it computes on
integers, so that a runtime can stay in integers across the addition.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torchao.quantization.pt2e.observer import ObserverBase
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from ...core.batch import Batch, device_of_model, repeated
from ...core.errors import CompressionError
from ...spaces.models.exported_graph import (
    ADDITIONS,
    WEIGHTED,
    constant,
    folded_in,
    is_folded,
    module_path,
    residual_additions,
    runs_again,
    scale_and_shift,
)
from ...spaces.policies.candidate import Quantization, QuantizedWeight, QuantParams
from ...spaces.policies.policy import LayerPolicy, Policy
from ...spaces.policies.quantization_scheme import Scheme
from ...workloads.workload import MapDataset
from ..batches import CALIBRATION_BATCH, input_batches
from ..folding import BATCH_NORMS
from .bfloat16 import rounded_weights
from .captured import captured, capturing, with_observers
from .observers import ACTIVATION_OBSERVERS, WEIGHT_OBSERVERS
from .weight_grids import grouped_weights, quantized_recurrences, quantized_tables

CONTAINER_BITS = 8
aten = torch.ops.aten
TRANSPARENT = {
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardtanh.default, aten.hardtanh_.default,
    aten.dropout.default, aten.add.Tensor, aten.add_.Tensor, aten.max_pool2d.default,
}  # fmt: skip
"""Operations that a runtime fuses into the layer before them or computes on that layer's grid; the layers that feed a tensor are
found through them."""


def quantize(model: nn.Module, example_input: Batch, policy: Policy, calibration: MapDataset) -> Quantization:
    """The grids of `model` under `policy`, calibrated on `calibration`, its weights in bfloat16, its recurrent layers' matrices and its
    embeddings' tables; the model is not changed.

    Args:
        model: float32, eval mode; batch-norm after a convolution is folded into the grids' weights and bias.
        example_input: shape [1, ...].

    Raises:
        CompressionError: torch.export or PT2E cannot take the model, or a layer reads numbers that are not finite.
    """
    found = _of_layers(model, example_input, policy, calibration)
    return replace(found, recurrent=quantized_recurrences(model, policy), embeddings=quantized_tables(model, policy))


def _of_layers(model: nn.Module, example_input: Batch, policy: Policy, calibration: MapDataset) -> Quantization:
    """The quantization of all but the recurrent layers and embeddings."""
    layers = policy.layers.items()
    wanted = {name: layer for name, layer in layers if _has_grid_per_channel(layer) or layer.has_activation_grid}
    if not wanted:
        return _weights_alone(model, example_input, policy)
    _require_linear(model, [name for name, layer in wanted.items() if layer.is_dynamic])
    batch_size = min(CALIBRATION_BATCH, len(calibration))
    with capturing():
        exported = captured(model, repeated(example_input, batch_size))
        norms, mixed = folded_in(exported.graph)
        _spell_out_norms(exported)
        prepared = with_observers(exported, PolicyQuantizer(wanted, policy.scheme))
    with torch.no_grad():
        for batch in input_batches(calibration, batch_size, device_of_model(model)):
            prepared(batch)
    return _with_other_weights(_read(prepared, wanted), model, policy, norms, mixed)


def _has_grid_per_channel(layer: LayerPolicy) -> bool:
    return layer.has_weight_grid and not layer.has_groups


def _weights_alone(model: nn.Module, example_input: Batch, policy: Policy) -> Quantization:
    """The quantization of a policy that needs no calibration: weights in bfloat16 and with scales by groups."""
    if not any(layer.has_bfloat16_weight or layer.has_groups for layer in policy.layers.values()):
        return Quantization()
    return _with_other_weights(Quantization(), model, policy, *_norms_of(model, example_input))


def _require_linear(model: nn.Module, dynamic: Iterable[str]) -> None:
    for name in dynamic:
        if not isinstance(model.get_submodule(name), nn.Linear):
            raise CompressionError(f"layer {name!r} is not linear; only linear layers are quantized dynamically")


def _with_other_weights(
    found: Quantization, model: nn.Module, policy: Policy, norms: Mapping[str, str], mixed: set[str]
) -> Quantization:
    """`found` with the weights in bfloat16 and with scales by groups, and of `norms` (layer -> batch-norm) those folded into a
    weight of any kind."""
    rounded = rounded_weights(model, policy, norms)
    weights = {**found.weights, **grouped_weights(model, policy, norms)}
    stored = weights.keys() | rounded.keys()
    folded = {layer: norm for layer, norm in norms.items() if layer in stored}
    kept = mixed | {norm for layer, norm in norms.items() if layer not in folded}
    kept_norms = frozenset(kept & {*folded.values()})
    return replace(found, weights=weights, bfloat16=rounded, norms=folded, kept_norms=kept_norms)


def folded_norms(model: nn.Module, example_input: Batch) -> dict[str, str]:
    """{layer: batch-norm} of those that lowering folds into the layer before them, wherever the model runs them.

    Raises:
        CompressionError: torch.export cannot take the model.
    """
    norms, mixed = _norms_of(model, example_input)
    return {layer: norm for layer, norm in norms.items() if norm not in mixed}


def _norms_of(model: nn.Module, example_input: Batch) -> tuple[dict[str, str], set[str]]:
    """As `folded_in` has it."""
    if not any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return {}, set()
    with capturing():
        exported = captured(model, repeated(example_input, 2))
    return folded_in(exported.graph)


def _spell_out_norms(exported: fx.GraphModule) -> None:
    """Fold every batch-norm that lowering folds. Write the others as a multiplication and an addition, or, where one has no statistics
    of its own, as an operation that PT2E does not know.

    PT2E sweeps the whole graph for each one that it folds. It would also fold one into a layer that something else reads, whose
    numbers it then changes, or for want of statistics fail, and spends a minute on each graph that keeps one.
    """
    graph = exported.graph
    norms = graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    folded = [is_folded(norm) for norm in norms]  # before any is: the next one would seem to follow the same layer
    for index, norm in enumerate(norms):
        if None in norm.args[3:5]:
            _compute_statistics(graph, norm)
            continue
        if folded[index]:
            _fold(exported, norm, index)
            continue
        scale, shift = scale_and_shift(exported, norm)
        exported.register_buffer(f"norm{index}_scale", scale.to(device_of_model(exported)))
        exported.register_buffer(f"norm{index}_shift", shift.to(device_of_model(exported)))
        with graph.inserting_before(norm):
            scaled = graph.call_function(aten.mul.Tensor, (norm.args[0], graph.get_attr(f"norm{index}_scale")))
            shifted = graph.call_function(aten.add.Tensor, (scaled, graph.get_attr(f"norm{index}_shift")))
        scaled.meta, shifted.meta = dict(norm.meta), dict(norm.meta)
        norm.replace_all_uses_with(shifted)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    exported.recompile()


def _values(exported: fx.GraphModule, node: object) -> Tensor | None:
    return None if node is None else torch.from_numpy(constant(exported, cast("fx.Node", node)))


def _fold(exported: fx.GraphModule, norm: fx.Node, index: int) -> None:
    """Have the layer before a batch-norm compute what the batch-norm makes of its output."""
    layer = cast("fx.Node", norm.args[0])
    fuse = fuse_linear_bn_weights if layer.target is aten.linear.default else fuse_conv_bn_weights
    gamma, beta, mean, variance = (_values(exported, node) for node in norm.args[1:5])
    weight, own_bias = (_values(exported, node) for node in (*layer.args, None)[1:3])
    weight, mean, variance = (cast("Tensor", each) for each in (weight, mean, variance))  # of one that is folded
    gamma = torch.ones_like(mean) if gamma is None else gamma
    beta = torch.zeros_like(mean) if beta is None else beta
    weight, bias = fuse(weight, own_bias, mean, variance, cast("float", norm.args[7]), gamma, beta)
    for kind, values in (("weight", weight), ("bias", bias)):
        exported.register_parameter(f"norm{index}_{kind}", nn.Parameter(values.to(device_of_model(exported))))
    with exported.graph.inserting_before(layer):
        folded = [exported.graph.get_attr(f"norm{index}_{kind}") for kind in ("weight", "bias")]
    folded[0].meta = dict(cast("fx.Node", layer.args[1]).meta)
    layer.args = (layer.args[0], *folded, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    exported.graph.erase_node(norm)


def _compute_statistics(graph: fx.Graph, norm: fx.Node) -> None:
    """Replace a batch-norm that computes the statistics of each batch by the operation that does nothing else."""
    read, weight, bias, _, _, _, momentum, epsilon = norm.args[:8]
    arguments = (read, weight, bias, True, momentum, epsilon)
    with graph.inserting_before(norm):
        made = graph.call_function(aten._native_batch_norm_legit.no_stats, arguments)
        values = graph.call_function(operator.getitem, (made, 0))
    made.meta, values.meta = dict(norm.meta), dict(norm.meta)
    norm.replace_all_uses_with(values)
    graph.erase_node(norm)


class PolicyQuantizer(Quantizer):
    """Annotates every layer's weight and input with the bits a policy gives it."""

    def __init__(self, layers: Mapping[str, LayerPolicy], scheme: Scheme = Scheme()) -> None:
        super().__init__()
        self.layers, self.scheme = layers, scheme

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        additions = set(residual_additions(model.graph))
        # In a module that runs again, the path does not identify an addition.
        again = {module_path(node) for node in additions if runs_again(node)}
        on_integers: dict[fx.Node, bool] = {}
        first: dict[str, fx.Node] = {}
        for node in model.graph.nodes:
            if node.target in WEIGHTED and (layer := self.layers.get(module_path(node))):
                _annotate(node, _layer_specs(node, layer, first.setdefault(module_path(node), node), self.scheme))
            elif node in additions and self._on_integers(node, on_integers) and module_path(node) not in again:
                _annotate(node, {operand: activation_spec(CONTAINER_BITS, self.scheme) for operand in node.args[:2]})
        return model

    def validate(self, model: fx.GraphModule) -> None:
        known = {module_path(node) for node in model.graph.nodes if node.target in WEIGHTED}
        if missing := self.layers.keys() - known:
            raise CompressionError(f"layer {min(missing)!r} is not in the exported graph")

    def _on_integers(self, addition: fx.Node, known: dict[fx.Node, bool]) -> bool:
        """Whether every layer that feeds `addition` computes on integers, and nothing is scaled on the way; `known` of those before it."""
        return "alpha" not in addition.kwargs and all(self._is_integer(each, known) for each in addition.args[:2])

    def _is_integer(self, node: object, known: dict[fx.Node, bool]) -> bool:
        """Whether `node`'s value comes from layers on integers alone, looking through what runtimes fuse."""
        if not isinstance(node, fx.Node) or node.op != "call_function":
            return False
        if node not in known:
            known[node] = self._comes_from_integers(node, known)
        return known[node]

    def _comes_from_integers(self, node: fx.Node, known: dict[fx.Node, bool]) -> bool:
        if node.target in WEIGHTED:
            layer = self.layers.get(module_path(node), LayerPolicy())
            return layer.has_weight_grid and layer.has_activation_grid
        operands = node.args[:2] if node.target in ADDITIONS else node.args[:1]
        return node.target in TRANSPARENT and all(self._is_integer(operand, known) for operand in operands)


def weight_spec(bits: int, scheme: Scheme = Scheme()) -> QuantizationSpec:
    """Symmetric per output channel; without the most negative integer, as runtimes' signed kernels want it."""
    high = 2 ** (bits - 1) - 1
    return QuantizationSpec(
        torch.int8, WEIGHT_OBSERVERS[scheme.weights].with_args(), -high, high, torch.per_channel_symmetric, ch_axis=0
    )


def activation_spec(bits: int, scheme: Scheme = Scheme()) -> QuantizationSpec:
    """Per tensor on 0 .. 2^bits - 1, affine or with zero in the middle."""
    observer = ACTIVATION_OBSERVERS[scheme.calibration].with_args(signed=scheme.activations == "signed")
    kind = torch.per_tensor_symmetric if scheme.activations == "symmetric" else torch.per_tensor_affine
    return QuantizationSpec(torch.uint8, observer, 0, 2**bits - 1, kind)


def _layer_specs(
    node: fx.Node, layer: LayerPolicy, first: fx.Node, scheme: Scheme
) -> dict[fx.Node, QuantizationSpecBase]:
    """Specs of a layer's input and weight; where it runs again, its grids are those of its `first` run."""
    operands, first_operands = (cast("list[fx.Node]", list(run.args[:2])) for run in (node, first))
    fresh = (activation_spec(layer.activation_bits, scheme), weight_spec(layer.weight_bits, scheme))
    offered = fresh if node is first else tuple(SharedQuantizationSpec((operand, first)) for operand in first_operands)
    has_grid = (layer.has_activation_grid, _has_grid_per_channel(layer))
    return {tensor: spec for tensor, spec, wanted in zip(operands, offered, has_grid, strict=True) if wanted}


def _annotate(node: fx.Node, specs: dict) -> None:
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)


def _read(prepared: fx.GraphModule, wanted: Mapping[str, LayerPolicy]) -> Quantization:
    """Read the grids off the observers of a calibrated PT2E graph, as `convert_pt2e` would, which takes seconds."""
    weights: dict[str, QuantizedWeight] = {}
    inputs: dict[str, QuantParams] = {}
    for node in prepared.graph.nodes:
        name = module_path(node)
        if node.target not in WEIGHTED or name not in wanted or name in weights or name in inputs:  # or runs again
            continue
        tensor, weight, bias = (*node.args, None)[:3]
        if (observer := _observer(prepared, tensor)) is not None:
            inputs[name] = _grid(observer)
        if (observer := _observer(prepared, weight)) is not None:
            folded_bias = None if bias is None else constant(prepared, bias)
            values = torch.from_numpy(constant(prepared, cast("fx.Node", weight).args[0]))
            weights[name] = _on_grid(values, _grid(observer), folded_bias)
    return Quantization(weights, inputs, dict(_addition_grids(prepared)))


def _addition_grids(prepared: fx.GraphModule) -> Iterator[tuple[tuple[str, int, int], QuantParams]]:
    seen: dict[str, int] = {}
    for node in residual_additions(prepared.graph):
        path = module_path(node)
        index = seen[path] = seen.get(path, -1) + 1
        for operand, tensor in enumerate(node.args[:2]):
            if (observer := _observer(prepared, tensor)) is not None:
                yield (path, index, operand), _grid(observer)


def _observer(graph: fx.GraphModule, node: object) -> ObserverBase | None:
    """The observer that is `node`; None where it is anything else."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, ObserverBase) else None


def _grid(observer: Any) -> QuantParams:
    """The grid that an observer has found, of a whole tensor or of each channel along axis 0."""
    scale, zero_point = observer.calculate_qparams()
    per_channel = observer.qscheme == torch.per_channel_symmetric
    container, shape = (np.int8, (-1,)) if per_channel else (np.uint8, ())
    return QuantParams(
        scale.detach().cpu().numpy().astype(np.float32).reshape(shape),
        zero_point.detach().cpu().numpy().astype(container).reshape(shape),
        observer.quant_min,
        observer.quant_max,
    )


def _on_grid(values: Tensor, grid: QuantParams, bias: np.ndarray | None) -> QuantizedWeight:
    """A weight [out, ...] rounded to the nearest integers of its grid, by PT2E's own operation."""
    steps, origins = torch.from_numpy(grid.scale), torch.from_numpy(grid.zero_point)
    rounded = torch.ops.quantized_decomposed.quantize_per_channel(
        values, steps, origins, 0, grid.low, grid.high, torch.int8
    )
    return QuantizedWeight(rounded.numpy(), grid, bias)
