"""A candidate lowered to one ONNX file with Q/DQ pairs, which OpenVINO and ONNX Runtime both execute in integers.

The float graph is exported without quantization, batch-norm folded by the exporter; the candidate's grids are then inserted
as QuantizeLinear/DequantizeLinear pairs (ONNX opset 17). That costs milliseconds where exporting a quantized graph costs
seconds, and keeps the file small: weights are stored as int8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ....core.batch import Batch, repeated
from ....spaces.policies.candidate import Candidate, Quantization
from ....spaces.policies.float_precision import BFLOAT16, DEFAULT, FLOAT32, FloatPrecision
from ..node_names import WEIGHTED, layer_of
from .float_graph import export_float
from .graph_cache import GraphCache
from .graph_nodes import nodes_of_layers
from .onnx_file import WeightsApart, weights_apart, write
from .options import NO_OPTIONS, LoweringOptions
from .passes.bfloat16_casts import insert_bfloat16
from .passes.embedding_tables import write_embeddings
from .passes.fuse_parallel_linears import fuse_parallel_linears
from .passes.grids import insert_grids
from .passes.integer_products import write_integer_products
from .passes.kept_axes import keep_reduced_axes
from .passes.permutations import spell_out_permutations
from .passes.recurrent_nodes import write_recurrent_weights
from .passes.shared_tables import share_tables
from .passes.weight_groups import write_groups

float_graphs = GraphCache(lambda model, example_input: weights_apart(export_float(model, example_input)))
"""The float graphs that this process has exported."""

DYNAMIC = "slimfront.dynamic"
"""The key of a file's metadata that asks for dynamic quantization; see `lower`."""

PRODUCTS = (*WEIGHTED, "ConvTranspose", "Einsum", "GRU", "LSTM", "RNN")
"""ONNX operations that multiply matrices, of layers or of two computed tensors."""

PRECISION = "slimfront.float_precision"
"""The key of a file's metadata that names the precision of all its floats, for a runtime with one floating-point type per file;
float32 where it is missing. Where all layers compute in bfloat16 or integers it is bfloat16, too."""


def lower(
    candidate: Candidate, example_input: Batch, batch: int, path: Path, options: LoweringOptions = NO_OPTIONS
) -> Path:
    """Write `candidate` as an ONNX file with inputs and outputs of shape [batch, ...], a single one called "input", or "output".

    Raises:
        LoweringError: the model cannot be exported, or a quantized layer is not found in the exported graph.
    """
    exported = float_graphs.graph_of(candidate.model, repeated(example_input, batch))
    model = ModelProto()
    model.CopyFrom(exported.model)
    lowered = WeightsApart(model, dict(exported.weights))
    _write_integers(lowered, candidate, options)
    _work_around(lowered.model.graph, candidate.quantization, options)
    _write_biases_and_weights(lowered, candidate, options)
    _insert_bfloat16(lowered, candidate)
    _note_precision(lowered, candidate)
    if options.fused_linears:
        fuse_parallel_linears(lowered)
    share_tables(lowered)
    write(model, lowered.weights, path)
    return path


def _write_integers(lowered: WeightsApart, candidate: Candidate, options: LoweringOptions) -> None:
    """Put the candidate's grids into the float graph."""
    quantization = candidate.quantization
    insert_grids(lowered, quantization, options.bound_float_layers, options.signed_grids)
    _write_groups(lowered, quantization, options.group_kernels)
    recurrent = candidate.policy.recurrent if quantization.recurrent else {}
    write_recurrent_weights(lowered, quantization.recurrent, recurrent, options.dynamic_lstm)
    write_embeddings(lowered, quantization.embeddings)
    _write_dynamic(lowered, candidate, options.integer_products)


def _work_around(graph: GraphProto, quantization: Quantization, options: LoweringOptions) -> None:
    """Write what the runtime would compute wrongly in another way that means the same."""
    if options.kept_axes and quantization.inputs:
        keep_reduced_axes(graph)
    if options.spelt_permutations:
        spell_out_permutations(graph)


def _write_biases_and_weights(lowered: WeightsApart, candidate: Candidate, options: LoweringOptions) -> None:
    """Write integer biases, and the weights that float layers dequantize, as the runtime is fast with."""
    if options.integer_biases:
        write_integer_biases(lowered.model, candidate.quantization)
    if options.folded_weights:
        spell_out_weights(lowered, _weight_only(candidate))


def _write_groups(lowered: WeightsApart, quantization: Quantization, kernels: Collection[int]) -> None:
    grouped = {name: weight for name, weight in quantization.weights.items() if weight.group_size}
    write_groups(lowered, grouped, nodes_of_layers(lowered.model.graph, grouped), kernels)


def _write_dynamic(lowered: WeightsApart, candidate: Candidate, integer_products: bool) -> None:
    """Write dynamically quantized layers in integer operations, or ask the runtime to quantize their inputs."""
    graph = lowered.model.graph
    dynamic = [name for name, layer in candidate.policy.layers.items() if layer.is_dynamic]
    if integer_products:
        write_integer_products(lowered, [node for runs in nodes_of_layers(graph, dynamic).values() for node in runs])
    elif dynamic:
        lowered.model.metadata_props.add(key=DYNAMIC, value="true")


def _weight_only(candidate: Candidate) -> list[str]:
    """Layers whose weights alone are on integers, with one scale for each output channel."""
    layers, grids = candidate.policy.layers, candidate.quantization
    per_channel = {name for name, weight in grids.weights.items() if not weight.group_size}
    return sorted(per_channel - grids.inputs.keys() - {name for name, layer in layers.items() if layer.is_dynamic})


def _insert_bfloat16(lowered: WeightsApart, candidate: Candidate) -> None:
    if not (weights := candidate.quantization.bfloat16):
        return
    policy = candidate.policy
    nodes = nodes_of_layers(lowered.model.graph, weights)
    insert_bfloat16(lowered, weights, nodes, {name for name in weights if policy.layer(name).is_bfloat16})


def _note_precision(lowered: WeightsApart, candidate: Candidate) -> None:
    if (precision := _float_precision(lowered, candidate)) != FLOAT32:
        lowered.model.metadata_props.add(key=PRECISION, value=precision)


def _float_precision(lowered: WeightsApart, candidate: Candidate) -> FloatPrecision:
    """The precision of all floats: the policy's, but for two kinds of candidates.

    Where layers compute in bfloat16 and all others on integers, it is bfloat16. Where all products are on integers it is float32: the
    pooling and activations left save less in 16 bits than conversions cost (3 to 7 % of two CNNs on OpenVINO with AMX).
    """
    policy, quantization = candidate.policy, candidate.quantization
    whole = {name for name in quantization.bfloat16 if policy.layer(name).is_bfloat16}
    multiplying = {layer_of(node.name) for node in lowered.model.graph.node if node.op_type in PRODUCTS} - whole
    if not multiplying <= quantization.weights.keys() & quantization.inputs.keys():
        return policy.float_precision
    replaced, better = (FLOAT32, BFLOAT16) if whole else (DEFAULT, FLOAT32)
    return better if policy.float_precision == replaced else policy.float_precision


def spell_out_weights(lowered: WeightsApart, layers: Iterable[str]) -> None:
    """Dequantize the weights of `layers` by a Cast and a Mul, in place."""
    graph = lowered.model.graph
    makers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for first, *_ in nodes_of_layers(graph, layers).values():
        dequantize = makers[first.input[1]]
        integers, scale, zero_point = dequantize.input
        shape = [-1 if axis == dequantize.attribute[0].i else 1 for axis in range(lowered.weights[integers].ndim)]
        steps = numpy_helper.to_array(constants[scale]).reshape(shape)
        constants[scale].CopyFrom(numpy_helper.from_array(steps, scale))
        graph.initializer.remove(constants[zero_point])
        cast = helper.make_node(
            "Cast", [integers], [f"{integers}.float"], name=f"{integers}.cast", to=TensorProto.FLOAT
        )
        made = dequantize.output[0]
        dequantize.CopyFrom(helper.make_node("Mul", [cast.output[0], scale], [made], name=made))
        graph.node.insert(0, cast)


def write_integer_biases(model: ModelProto, quantization: Quantization) -> None:
    """Write the biases of linear layers with quantized input and weight as int32 x input scale x weight scale, in place.

    The scale is that of the layer's integer sums, 2^-32 of their range or less (Jacob et al. 2018, arXiv:1712.05877, section 2.4).
    """
    graph = model.graph
    readers = {name: node for node in graph.node for name in node.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    both = sorted(quantization.inputs.keys() & quantization.weights.keys())
    for name, nodes in nodes_of_layers(graph, both).items():
        scale = quantization.inputs[name].scale * quantization.weights[name].grid.scale
        for number, node in enumerate(nodes):
            if (adder := _bias_adder(node, readers)) is None:
                continue
            biases = [i for i, tensor in enumerate(adder.input) if _is_bias(constants.get(tensor), scale)]
            if biases:
                bias = numpy_helper.to_array(constants[adder.input[biases[0]]])
                adder.input[biases[0]] = _dequantized_bias(graph, f"{name}.bias{number}", bias, scale)


def _bias_adder(node: NodeProto, readers: Mapping[str, NodeProto]) -> NodeProto | None:
    """The node that adds the bias of a linear layer: a Gemm itself, or the Add that reads a MatMul; None for anything else."""
    if node.op_type != "MatMul":
        return None if node.op_type == "Conv" else node
    reader = readers.get(node.output[0])
    return reader if reader is not None and reader.op_type == "Add" else None


def _is_bias(tensor: TensorProto | None, scale: np.ndarray) -> bool:
    return tensor is not None and list(tensor.dims) == [scale.size]


def _dequantized_bias(graph: GraphProto, name: str, bias: np.ndarray, scale: np.ndarray) -> str:
    """Add `bias`, shape [channels], on the int32 grid of `scale` to `graph`; the name of the tensor."""
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(bias / scale.astype(np.float64)), limits.min, limits.max).astype(np.int32)
    stored = {"q": integers, "scale": scale.astype(np.float32), "zero_point": np.zeros_like(integers)}
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}.{key}") for key, value in stored.items())
    made = f"{name}.dq"
    graph.node.insert(
        0, helper.make_node("DequantizeLinear", [f"{name}.{key}" for key in stored], [made], made, axis=0)
    )
    return made
