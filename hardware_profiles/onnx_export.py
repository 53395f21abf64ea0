"""A model as a float32 ONNX graph whose nodes and weights carry the path of the module that made them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto
from torch import Tensor, nn

from ..errors import LoweringError
from ..workloads.workload import describe
from .node_names import WEIGHTED

OPSET = 17
INPUT, OUTPUT = "input", "output"


def export_float(model: nn.Module, example_input: Tensor) -> ModelProto:
    """The float32 graph of `model`, batch-norm folded, every node and weight named after the module that made it.

    The TorchScript exporter is used: 0.1 s where the dynamo exporter takes 2 s, and its node names carry module paths.

    Raises:
        LoweringError: the exporter cannot take the model.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _full_paths(model):
        # The exporter announces its own deprecation and constant folding it skips; neither concerns the user.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model.eval(),
                (example_input,),
                buffer,  # type: ignore[arg-type]  # this exporter writes to open files too
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
            raise LoweringError(f"ONNX export failed: {describe(error)}") from error
    exported = onnx.load_from_string(buffer.getvalue())
    _name_weights(exported.graph)
    return exported


@contextmanager
def _full_paths(model: nn.Module) -> Iterator[None]:
    """Let the exporter name nodes after the whole path of their module.

    By itself it leaves out containers that do not run, such as a `ModuleList`, and what a `ModuleDict` is called.
    """

    def name_scopes(*_: object) -> None:
        paths = {module: f"{torch.typename(type(module))}::{path}" for path, module in model.named_modules()}
        torch.jit._trace._trace_module_map = paths  # type: ignore[attr-defined]

    hook = model.register_forward_pre_hook(name_scopes)
    try:
        yield
    finally:
        hook.remove()


def _name_weights(graph: GraphProto) -> None:
    """Give every layer weights of its own, named after its node: the exporter stores equal ones once."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        n.output[0]: constants[n.input[0]] for n in graph.node if n.op_type == "Identity" and n.input[0] in constants
    }
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        for index, kind in enumerate(("weight", "bias"), start=1):
            if index < len(node.input) and node.input[index] in constants:
                own = TensorProto.FromString(constants[node.input[index]].SerializeToString())
                own.name = node.input[index] = f"{node.name}/{kind}"
                graph.initializer.append(own)
    _drop_unread(graph)


def _drop_unread(graph: GraphProto) -> None:
    outputs = {tensor.name for tensor in graph.output}
    read = {name for node in graph.node for name in node.input} | outputs
    for node in [node for node in graph.node if node.op_type == "Identity" and not read.intersection(node.output)]:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | outputs
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
