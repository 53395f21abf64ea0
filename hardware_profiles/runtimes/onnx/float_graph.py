"""A model as a float32 ONNX graph whose nodes and weights carry the path of the module that made them."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import cast

import numpy as np
import onnx
import torch
import torch.jit._trace as torch_trace
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ....core.batch import INPUT, OUTPUT, Batch, by_name, from_names, tensors_of
from ....core.errors import LoweringError
from ....core.interrupts import raise_if_interrupted
from ....workloads.calls import DynamicAxes, axes_of, names_of_outputs, output_axes
from ..node_names import RECURRENT, WEIGHTED, first_run, layer_of
from .exporter import OPSET, attention_with_plain_flags, why_not_exported, without_printed_graphs
from .graph_nodes import drop_nodes, drop_unread
from .signature import note_sizes


def export_float(model: nn.Module, example_input: Batch) -> ModelProto:
    """The float32 graph of `model`, batch-norm folded, every node and weight named after the module that made it.

    The TorchScript exporter is used: 0.1 s where the dynamo exporter takes 2 s, and its node names carry module paths.

    Raises:
        LoweringError: the exporter cannot take the model.
    """
    buffer = io.BytesIO()
    inputs, outputs, axes = by_name(example_input, INPUT), names_of_outputs(model), axes_of(model)
    of_outputs, sizes = output_axes(model.eval(), example_input) if axes else ({}, {})
    with warnings.catch_warnings(), _full_paths(model), attention_with_plain_flags(), without_printed_graphs():
        # The exporter announces its own deprecation and constant folding it skips; neither concerns the user.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model.eval() if isinstance(example_input, Tensor) and outputs == [OUTPUT] else _Flat(model, inputs),
                tuple(inputs.values()),
                cast("str", buffer),  # this exporter writes to open files too, which its annotation leaves out
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # of a model in eval mode; EVAL folds norms into shared weights
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes={**axes, **of_outputs} or None,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise_if_interrupted(error)
            raise LoweringError(f"ONNX export failed: {why_not_exported(error)}") from error
    exported = ModelProto.FromString(cast("bytes", buffer.getbuffer()))  # a view: `getvalue` would copy all weights
    del buffer
    for node in exported.graph.node:
        node.name = node.name.replace("//", "/", 1)  # of the model within `_Flat`
    _declare_every(exported.graph, inputs, axes)
    _store_each_constant(exported.graph)
    _name_layers(exported.graph, {path for path, _ in model.named_modules()})
    _fold_constant_runs(exported.graph)
    _name_weights(exported.graph)
    _fold_norms(exported)
    if axes:
        note_sizes(exported, sizes)
    return exported


def _declare_every(graph: GraphProto, inputs: Mapping[str, Tensor], axes: DynamicAxes) -> None:
    """Have a graph take every input of its model: the exporter leaves out those that no node reads."""
    read = {value.name: value for value in graph.input}
    for name, tensor in inputs.items():
        if name not in read:
            shape = [axes.get(name, {}).get(place, size) for place, size in enumerate(tensor.shape)]
            kind = helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, shape))


class _Flat(nn.Module):
    """A model of several inputs or outputs as the exporter takes it, with tensors by position."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self._names = model, list(inputs)
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.model(from_names(dict(zip(self._names, tensors, strict=True)), INPUT))))


@contextmanager
def _full_paths(model: nn.Module) -> Iterator[None]:
    """Let the exporter name nodes after the whole path of their module.

    By itself it leaves out containers that do not run, such as a `ModuleList`, and the names of entries of a `ModuleDict`.
    """

    def name_scopes(*_: object) -> None:
        paths = {module: f"{torch.typename(type(module))}::{path}" for path, module in model.named_modules()}
        torch_trace._trace_module_map = paths

    with model.register_forward_pre_hook(name_scopes):
        yield


def _name_layers(graph: GraphProto, modules: Set[str]) -> None:
    """Name what a layer computes when it runs again "…/layer/Gemm/3", where the exporter writes "…/layer_3/Gemm"."""
    taken: set[str] = set()
    for node in graph.node:
        scope, _, path = node.name.rpartition("/")[0].rpartition("/")
        layer, _, run = path.rpartition("_")
        own = f"{scope}/{layer}/{node.op_type}/{run}"
        if own in taken:  # of a module that multiplies several times in each run, as a cell of a recurrent network
            continue
        if node.op_type in (*WEIGHTED, *RECURRENT) and path not in modules and layer in modules and run.isdigit():
            node.name = own
            taken.add(own)


def _store_each_constant(graph: GraphProto) -> None:
    """Store every constant under its own name: the exporter stores equal ones once, such as the biases of zeros of an untrained
    model, and derives the others from it by Identity, where no later pass finds them."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    copies = set()
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in _outputs(graph):
            constants[node.output[0]] = _copied(graph, constants[node.input[0]], node.output[0])
            copies.add(node.output[0])
    drop_nodes(graph, copies)


def _copied(graph: GraphProto, constant: TensorProto, name: str) -> TensorProto:
    """A copy of a constant in the graph, under another name."""
    own = graph.initializer.add()
    own.CopyFrom(constant)
    own.name = name
    return own


def _fold_constant_runs(graph: GraphProto) -> None:
    """Compute the runs of a layer that read a constant, such as the first state of a recurrent network.

    OpenVINO 2026.4 refuses those whose weight alone is quantized.
    """
    constants, computed = _constants(graph), set()
    layers = [node for node in graph.node if node.op_type in WEIGHTED]
    runs = Counter(layer_of(node.name) for node in layers)
    for node in [node for node in layers if runs[layer_of(node.name)] > 1]:
        if constants.keys() >= set(node.input):
            known = {name: numpy_helper.to_array(constants[name]) for name in node.input}
            (result,) = ReferenceEvaluator(node).run(None, known)
            graph.initializer.append(numpy_helper.from_array(np.asarray(result), node.output[0]))
            computed.add(node.output[0])
    drop_nodes(graph, computed)


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The tensors that are known before the input comes, stored or made by a node; as the graph has them, not copied."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    return stored | {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}


def _name_weights(graph: GraphProto) -> None:
    """Give every layer weights of its own, named after it; of a module that multiplies by several weights, each has a name."""
    constants, readers = {tensor.name: tensor for tensor in graph.initializer}, _readers(graph)
    names: dict[str | None, str] = {}
    for node in graph.node:
        kinds = ("weight", "bias") if node.op_type in WEIGHTED else ("weight_ih", "weight_hh", "bias")
        if node.op_type not in (*WEIGHTED, *RECURRENT):
            continue
        name = names.setdefault(layer_of(node.name), first_run(node.name))
        for index, kind in enumerate(kinds, start=1):
            if index < len(node.input) and node.input[index] in constants:
                read = node.input[index]
                node.input[index] = own = _free_name(constants, f"{name}/{kind}", read)
                if own not in constants:  # else it is named so, or the layer has run before
                    constants[own] = _own(graph, constants, read, own, is_shared=readers[read] > 1)
    drop_unread(graph, "Identity")


def _own(graph: GraphProto, constants: dict[str, TensorProto], read: str, own: str, is_shared: bool) -> TensorProto:
    """The constant `read` under the name `own`: itself, or a copy where others read it too."""
    if is_shared:
        return _copied(graph, constants[read], own)
    renamed = constants.pop(read)
    renamed.name = own
    return renamed


def _free_name(constants: Mapping[str, TensorProto], name: str, read: str) -> str:
    """The first of `name`, "name/1", "name/2" that no constant has, or that an equal one has."""
    numbered = (f"{name}/{number}" if number else name for number in count())
    return next(own for own in numbered if own not in constants or _equal(constants[own], constants[read]))


def _equal(first: TensorProto, second: TensorProto) -> bool:
    return first.dims == second.dims and first.raw_data == second.raw_data


def _fold_norms(model: ModelProto) -> None:
    """Fold every batch-norm after a convolution, or a linear layer of one vector per sample, that nothing else reads.

    Faster, and OpenVINO 2026.4 computes nonsense where one stands between two quantized linear layers. The exporter would fold those
    after convolutions too, into one run of several that share a weight.
    """
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if norms:
        constants, folded = _constants(model.graph), _foldable(model, norms)
        for layer, norm in folded:
            _fold(model.graph, layer, norm, constants)
            norm.output[0] = f"{norm.name}.folded"  # what it made the layer makes now
        drop_nodes(model.graph, {norm.output[0] for _, norm in folded})
        drop_unread(model.graph, "Identity")


def _foldable(model: ModelProto, norms: Sequence[NodeProto]) -> list[tuple[NodeProto, NodeProto]]:
    """(layer, batch-norm) of `norms` that can be folded: a layer whose output and weight nothing else reads."""
    readers = _readers(model.graph)
    layers = {node.output[0]: node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "Conv")}
    trained = {tensor.name for tensor in model.graph.initializer}  # a batch-norm without weights has other constants
    known, outputs = _constants(model.graph).keys(), _outputs(model.graph)
    ranks = cache(lambda: _ranks(onnx.shape_inference.infer_shapes(model).graph))  # copies all weights; few graphs ask

    def is_foldable(layer: NodeProto, norm: NodeProto) -> bool:
        between = norm.input[0]
        return (
            known >= {*layer.input[1:], *norm.input[1:]}
            and (layer.op_type == "Conv" or trained.issuperset(norm.input[1:]))
            and readers[between] == readers[layer.input[1]] == 1
            and between not in outputs
            and (layer.op_type != "MatMul" or ranks()[between] == 2)
        )

    pairs = ((layers.get(norm.input[0]), norm) for norm in norms)
    return [(layer, norm) for layer, norm in pairs if layer is not None and is_foldable(layer, norm)]


def _outputs(graph: GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.output}


def _readers(graph: GraphProto) -> Counter[str]:
    """Tensor -> how many inputs of nodes it is."""
    return Counter(name for node in graph.node for name in node.input)


def _ranks(graph: GraphProto) -> dict[str, int]:
    return {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}


def _folded(constants: Mapping[str, TensorProto], layer: NodeProto, norm: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """The weight, shape [outputs, ...], and the bias of a layer that computes what `norm` makes of its output."""
    weight, *bias = (numpy_helper.to_array(constants[name]) for name in layer.input[1:])
    gamma, beta, mean, variance = (numpy_helper.to_array(constants[name]) for name in norm.input[1:])
    factor = gamma / np.sqrt(variance + next(a.f for a in norm.attribute if a.name == "epsilon"))
    rows = weight.T if layer.op_type == "MatMul" else weight
    return rows * factor.reshape(-1, *[1] * (rows.ndim - 1)), beta + (sum(bias) - mean) * factor


def _fold(graph: GraphProto, layer: NodeProto, norm: NodeProto, constants: dict[str, TensorProto]) -> None:
    """Make `layer` compute what `norm` made of its output; a linear one as a Gemm.

    Args:
        constants: all of the graph's, looked up once for all batch-norms.
    """
    names = [f"{layer.name}/weight", f"{layer.name}/bias"]
    for name, value in zip(names, _folded(constants, layer, norm), strict=True):
        if name not in constants:
            constants[name] = graph.initializer.add()
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    if layer.op_type == "Conv":
        layer.input[:], layer.output[:] = [layer.input[0], *names], [norm.output[0]]
    else:
        layer.CopyFrom(helper.make_node("Gemm", [layer.input[0], *names], [norm.output[0]], name=layer.name, transB=1))
