"""A candidate as a PT2 archive: its exported program with the candidate's quantization, or the code that Inductor compiles from it.

Grids are `quantized_decomposed` operations, weights int8. Compiled ahead of time for x86, torchao's fusion passes turn what
stands between them into oneDNN's integer convolutions and matrix products.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers the operations of grids
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import package_pt2

from ....core.batch import INPUT, Batch, by_name, moved, tensors_of
from ....core.errors import LoweringError
from ....core.interrupts import raise_if_interrupted
from ....spaces.models.exported_graph import (
    WEIGHTED,
    constant,
    is_folded,
    module_path,
    residual_additions,
    scale_and_shift,
    under_first_paths,
)
from ....spaces.policies.candidate import Candidate, QuantizedWeight, QuantParams, RoundedWeight
from ....workloads.calls import names_of_outputs
from ....workloads.workload import describe
from .archive import NOTES
from .embedding_tables import quantize_tables
from .short_floats import DTYPES, REPORTED, ShortFloats, convert_ends

aten, grids = torch.ops.aten, torch.ops.quantized_decomposed
INTEGER_KERNELS = ("qconv", "qlinear")
"""Inductor's names of integer convolutions and linear layers; all other layers run in float32."""


def lower(candidate: Candidate, inputs: Batch, path: Path, device: str, compiled: bool) -> Path:
    """Write `candidate` for inputs of exactly this shape [batch, ...].

    Raises:
        LoweringError: torch.export or Inductor cannot take the model.
    """
    try:
        with torch.no_grad():
            program = _program(candidate, inputs, device)
            there = moved(inputs, device)
            outputs: Batch = program.module(check_guards=False)(there)
            made = dict(zip(names_of_outputs(candidate.model), tensors_of(outputs), strict=True))
            notes: dict[str, Any] = {"inputs": _infos(by_name(inputs, INPUT)), "outputs": _infos(made)}
            notes["float_precision"] = candidate.policy.float_precision
            if not compiled:
                notes["precisions"] = _eager(program)
                package_pt2(str(path), exported_programs=program, extra_files={NOTES: json.dumps(notes)})
                return path
            files, notes["precisions"] = _compile(program, there)
            package_pt2(str(path), aoti_files={"model": files}, extra_files={NOTES: json.dumps(notes)})
            return path
    except LoweringError:
        raise
    except Exception as error:  # exporter and compiler raise whatever a model they cannot take makes them meet
        raise_if_interrupted(error)
        raise LoweringError(f"torch cannot lower the model: {describe(error)}") from error


def _infos(tensors: Mapping[str, Tensor]) -> list[tuple[str, list[int], str]]:
    """(name, shape, type as numpy calls it) of each tensor."""
    return [(name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()]


def _program(candidate: Candidate, inputs: Batch, device: str) -> ExportedProgram:
    """The exported program of `candidate`, batch-norm folded, every grid in it."""
    model = candidate.model.eval()
    if device != "cpu" or candidate.quantization.recurrent:
        model = deepcopy(model)  # what is exported holds the model's own parameters, and would take them along
    for path, weight in candidate.quantization.recurrent.items():
        model.get_parameter(path).data = torch.from_numpy(weight.values())
    exported = torch.export.export(model, (inputs,)).module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    under_first_paths(exported, model)
    _Inserter(exported, candidate, device).insert()
    exported.graph.eliminate_dead_code()
    _drop_unread(exported)
    exported.recompile()
    return torch.export.export(exported.to(device), (moved(inputs, device),))


def _drop_unread(exported: fx.GraphModule) -> None:
    """Remove the float weights that were replaced by quantized ones, which would be stored otherwise."""
    read = {node.target for node in exported.graph.nodes if node.op == "get_attr"}
    stored = [*dict(exported.named_parameters()), *dict(exported.named_buffers())]
    for name in stored:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(exported.get_submodule(owner), attribute)


class _Inserter:
    """Puts a candidate's grids into its exported graph; one pair per tensor and grid, shared by all its readers."""

    def __init__(self, exported: fx.GraphModule, candidate: Candidate, device: str) -> None:
        self.exported, self.graph = exported, exported.graph
        self.candidate, self.quantization, self.device = candidate, candidate.quantization, device
        self.pairs: dict[tuple, fx.Node] = {}
        self.weights: dict[str, fx.Node] = {}
        self.packed: dict[str, list[fx.Node]] = {}

    def insert(self) -> None:
        additions = residual_additions(self.graph)  # counted before anything changes
        layers = [(module_path(node), node) for node in self.graph.nodes if node.target in WEIGHTED]
        norms = self.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
        for norm in [norm for norm in norms if is_folded(norm)]:  # as the model has them, one after another too
            self._fold(norm)
        dtype = DTYPES.get(self.candidate.policy.float_precision)
        short = ShortFloats(self.exported, dtype, self._buffer) if dtype is not None else None
        quantize_tables(self.graph, self.quantization.embeddings, self._buffer)
        for name, node in layers:
            self._insert_grids(name, node)
            if short is not None and self._is_float(name):
                short.convert(name, node)
        self._quantize_additions(additions)

    def _insert_grids(self, name: str, node: fx.Node) -> None:
        """Let a layer read its input and its weight as its policy says."""
        if name in self.quantization.inputs:
            self._quantize_operand(node, 0, self.quantization.inputs[name])
        if self.candidate.policy.layer(name).is_dynamic:
            self._quantize_at_run_time(node)
        if name in self.quantization.weights:
            self._quantize_weight(name, node, self.quantization.weights[name])
        if name in self.quantization.bfloat16:
            self._round_weight(name, node, self.quantization.bfloat16[name])

    def _is_float(self, name: str) -> bool:
        """Whether a layer multiplies floats of a precision that is not its own decision."""
        layer = self.candidate.policy.layer(name)
        return name not in self.quantization.inputs and not (
            layer.is_dynamic or layer.is_bfloat16 or layer.weight_group_size
        )

    def _fold(self, norm: fx.Node) -> None:
        """Fold a batch-norm into the layer before it."""
        layer = norm.args[0]
        assert isinstance(layer, fx.Node)
        scale, shift = (values.flatten() for values in scale_and_shift(self.exported, norm))
        weight, bias = (
            torch.from_numpy(constant(self.exported, 0.0 if value is None else value))
            for value in (*layer.args[1:3], None)[:2]
        )
        folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        self._replace(layer, 1, folded, f"{norm.name}_weight")
        self._replace(layer, 2, bias.float() * scale + shift, f"{norm.name}_bias")
        norm.replace_all_uses_with(layer)
        self.graph.erase_node(norm)

    def _quantize_operand(self, node: fx.Node, operand: int, grid: QuantParams) -> None:
        tensor = node.args[operand]
        affine = (float(grid.scale), int(grid.zero_point), grid.low, grid.high, torch.uint8)
        if (tensor, affine) not in self.pairs:
            with self.graph.inserting_before(node):
                integers = self.graph.call_function(grids.quantize_per_tensor.default, (tensor, *affine))
                self.pairs[tensor, affine] = self.graph.call_function(
                    grids.dequantize_per_tensor.default, (integers, *affine)
                )
        node.update_arg(operand, self.pairs[tensor, affine])

    def _quantize_at_run_time(self, node: fx.Node) -> None:
        tensor = node.args[0]
        if (tensor, "dynamic") not in self.pairs:
            bounds = (0, 255, torch.uint8)
            with self.graph.inserting_before(node):
                found = self.graph.call_function(
                    grids.choose_qparams.tensor, (tensor, 0, 255, torch.finfo(torch.float32).tiny, torch.uint8)
                )
                affine = tuple(self.graph.call_function(operator.getitem, (found, index)) for index in (0, 1))
                integers = self.graph.call_function(grids.quantize_per_tensor.tensor, (tensor, *affine, *bounds))
                self.pairs[tensor, "dynamic"] = self.graph.call_function(
                    grids.dequantize_per_tensor.tensor, (integers, *affine, *bounds)
                )
        node.update_arg(0, self.pairs[tensor, "dynamic"])

    def _quantize_weight(self, name: str, node: fx.Node, weight: QuantizedWeight) -> None:
        if weight.bias is not None:
            self._replace(node, 2, torch.from_numpy(weight.bias.astype(np.float32)), f"{name}_bias")
        if not weight.group_size:
            node.update_arg(1, self._dequantized_channels(name, node, weight))
        elif self.device == "cpu" and has_packed_kernel(weight):
            self._multiply_packed(name, node, weight)
        else:
            node.update_arg(1, self._dequantized_groups(name, node, weight))

    def _dequantized_channels(self, name: str, node: fx.Node, weight: QuantizedWeight) -> fx.Node:
        """A weight with a scale for each output channel, computed from its integers."""
        if name not in self.weights:
            with self.graph.inserting_before(node):
                stored = [
                    self._buffer(f"{name}_{part}", torch.from_numpy(np.ascontiguousarray(values)))
                    for part, values in (
                        ("q", weight.integers),
                        ("scale", weight.grid.scale),
                        ("zero_point", weight.grid.zero_point.astype(np.int64)),
                    )
                ]
                arguments = (*stored, 0, weight.grid.low, weight.grid.high, torch.int8)
                self.weights[name] = self.graph.call_function(grids.dequantize_per_channel.default, arguments)
        return self.weights[name]

    def _dequantized_groups(self, name: str, node: fx.Node, weight: QuantizedWeight) -> fx.Node:
        """A weight with scales by groups, computed from its integers [out, groups, inputs of a group]."""
        if name in self.weights:
            return self.weights[name]
        outputs, inputs = weight.integers.shape
        blocks = np.pad(weight.integers, ((0, 0), (0, -inputs % weight.group_size)))
        parts = {"q": blocks.reshape(outputs, -1, weight.group_size), "scale": weight.grid.scale[:, :, None]}
        parts["zero_point"] = weight.grid.zero_point[:, :, None].astype(np.float32)
        with self.graph.inserting_before(node):
            stored = {part: self._buffer(f"{name}_{part}", torch.from_numpy(values)) for part, values in parts.items()}
            made = self.graph.call_function(aten.sub.Tensor, (stored["q"], stored["zero_point"]))
            made = self.graph.call_function(aten.mul.Tensor, (made, stored["scale"]))
            made = self.graph.call_function(aten.reshape.default, (made, [outputs, blocks.shape[1]]))
            self.weights[name] = self.graph.call_function(aten.slice.Tensor, (made, 1, 0, inputs))
        return self.weights[name]

    def _multiply_packed(self, name: str, node: fx.Node, weight: QuantizedWeight) -> None:
        """Compute a layer by PyTorch's kernel for 4-bit weights, which reads a matrix; see `aten/native/cpu/int4mm_kernel.cpp`."""
        read, _, *bias = node.args
        outputs, inputs = weight.integers.shape
        with self.graph.inserting_before(node):
            if name not in self.packed:
                parts = packed_for_torch(weight).items()
                self.packed[name] = [self._buffer(f"{name}_{part}", values) for part, values in parts]
            stored = self.packed[name]
            rows = self.graph.call_function(aten.reshape.default, (read, [-1, inputs]))
            arguments = (rows, stored[0], weight.group_size, stored[1])
            product = self.graph.call_function(aten._weight_int4pack_mm_for_cpu.default, arguments)
            product.meta = dict(node.meta)
            made = self.graph.call_function(aten.reshape.default, (product, [*node.meta["val"].shape[:-1], outputs]))
            if bias and bias[0] is not None:
                made = self.graph.call_function(aten.add.Tensor, (made, bias[0]))
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)

    def _round_weight(self, name: str, node: fx.Node, weight: RoundedWeight) -> None:
        """Store a layer's weight in bfloat16, and compute in it where its input and output are bfloat16."""
        is_whole = self.candidate.policy.layer(name).is_bfloat16
        values = torch.from_numpy(weight.values.astype(np.float32)).bfloat16()
        self._replace(node, 1, values, f"{name}_bf16")
        if weight.bias is not None:
            bias = torch.from_numpy(weight.bias)
            self._replace(node, 2, bias.bfloat16() if is_whole else bias, f"{name}_bias")
        if is_whole:
            convert_ends(node, torch.bfloat16)
        else:
            with self.graph.inserting_before(node):
                node.update_arg(1, self.graph.call_function(aten.to.dtype, (node.args[1], torch.float32)))

    def _quantize_additions(self, additions: list[fx.Node]) -> None:
        seen: Counter[str] = Counter()
        for node in additions:
            path = module_path(node)
            for operand in (0, 1):
                if grid := self.quantization.additions.get((path, seen[path], operand)):
                    self._quantize_operand(node, operand, grid)
            seen[path] += 1

    def _replace(self, node: fx.Node, position: int, values: Tensor, name: str) -> None:
        with self.graph.inserting_before(node):
            stored = self._buffer(name, values)
        arguments = [*node.args, *[None] * (position + 1 - len(node.args))]
        arguments[position] = stored
        node.args = tuple(arguments)

    def _buffer(self, name: str, values: Tensor) -> fx.Node:
        name = _constant_name(name)
        while hasattr(self.exported, name):
            name += "_"
        self.exported.register_buffer(name, values)
        return self.graph.get_attr(name)


def has_packed_kernel(weight: QuantizedWeight) -> bool:
    """Whether PyTorch's kernel for 4-bit weights takes this one: whole groups, and outputs in sixteens."""
    outputs, inputs = weight.integers.shape
    is_narrow = weight.grid.high - weight.grid.low < 16
    return is_narrow and outputs % 16 == 0 and inputs % weight.group_size == 0


def packed_for_torch(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The operands of PyTorch's kernel: integers from 0 on, packed, and for each group its scale and what stands for 8."""
    integers = torch.from_numpy(weight.integers.astype(np.int32) + 8)
    scale, zero_point = (torch.from_numpy(part) for part in (weight.grid.scale, weight.grid.zero_point))
    ends = torch.stack([scale, -zero_point * scale], dim=-1).transpose(0, 1).contiguous()
    return {"q": aten._convert_weight_to_int4pack_for_cpu.default(integers, 1), "scale": ends}


def _constant_name(of: str) -> str:
    return f"grid_{of.replace('.', '_')}"


def _eager(program: ExportedProgram) -> dict[str, str]:
    """The precision of layers by the types that they read: float32, whatever their quantization, 16 bits, or packed weights."""
    floats = {
        module_path(node): REPORTED[node.meta["val"].dtype] for node in program.graph.nodes if node.target in WEIGHTED
    }
    packed = program.graph.find_nodes(op="call_function", target=aten._weight_int4pack_mm_for_cpu.default)
    return floats | {module_path(node): "u4" for node in packed}


def _compile(program: ExportedProgram, inputs: Batch) -> tuple[list[Any], dict[str, str]]:
    """Files of the package that Inductor compiles from `program`, and the precision of its layers in the compiled graph."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401  # registers integer fusions

    read: set[str] = set()
    options = {
        "freezing": True,
        "aot_inductor.package": True,
        "aot_inductor.compile_wrapper_opt_level": "O0",  # twice as fast to compile; kernels keep their own level
        "post_grad_custom_post_pass": lambda graph: read.update(_integer_weights(graph)),
    }
    files = torch._inductor.aot_compile(program.module(check_guards=False), (inputs,), options=options)  # type: ignore[arg-type]
    assert isinstance(files, list)  # of a package's files
    floats = _eager(program).items()
    return files, {name: "i8" if _constant_name(f"{name}_scale") in read else precision for name, precision in floats}


def _integer_weights(graph: fx.Graph) -> set[str]:
    """Names of the constants that integer kernels read, in the graph Inductor compiles."""
    kernels = [n for n in graph.nodes if n.name.startswith(INTEGER_KERNELS) and "prepack" not in n.name]
    return {source.name for node in kernels for source in node.all_input_nodes}
