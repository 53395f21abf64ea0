"""FLOPs, BOPs, parameters and packed bytes of thousands of policies at once, without building any model."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ....compression.packing.packed_file import grid_bytes, stored_as_is
from ....core.batch import Batch
from ....evaluators.counts import COUNTED, bops, flops, packed, parameters
from ....spaces.knobs.quantization import FLOATS
from ....spaces.models.channel_graph import ChannelGraph
from ....spaces.models.channel_groups import FINEST_MULTIPLE, ChannelGroup
from ....spaces.models.layers import Layer, macs_by_module
from ....spaces.models.recurrent import RecurrentLayer, matrix_shape
from ....spaces.policies.float_precision import FLOAT32
from ....spaces.policies.layer_policy import BFLOAT16_BITS, FULL_PRECISION, GRID_BITS, GROUPED_BITS
from ....spaces.policies.policy import Choice, Policy
from ....spaces.policies.recurrent_weights import read_bits_of, weight_bits_of
from ....spaces.space import Space

DECIDED = ("weight_bits", "activation_bits", "weight_group_size")
"""The kinds of layers' knobs that costs follow from."""

RECURRENT, EMBEDDINGS = "recurrent_weights", "embedding_bits"
"""The kinds of the recurrent layers' and the embeddings' knobs, which decide their bits."""

OF_MACHINES = (len(COUNTED), len(COUNTED) + 1)
"""The last columns of `AnalyticCost` are BOPs and bytes as most machines and files have them."""

FLOAT_BITS = {FLOAT32: FULL_PRECISION}
"""Float precision -> bits; any other has 16, as a default that is not float32 has."""


@dataclass(frozen=True)
class Shares:
    """Which part a channel group owns: of each layer's outputs and inputs, shape [layers, groups]; of all other parameters and of
    what is stored in addition to parameters, [groups]."""

    outputs: np.ndarray
    inputs: np.ndarray
    others: np.ndarray
    buffers: np.ndarray


def channel_shares(model: nn.Module, example_input: Batch, layers: Sequence[Layer], groups: Sequence[ChannelGroup]) -> Shares:  # fmt: skip
    """Shares found by really pruning each group alone, on one copy that is traced once and made whole again after each.

    Args:
        example_input: shape [1, ...].
    """
    outputs, inputs = np.zeros((2, len(layers), len(groups)))
    others, every = np.zeros(len(groups)), max(1, _other_parameters(model, layers))
    buffers, stored = np.zeros(len(groups)), max(1, _buffer_bytes(model))
    shares = Shares(outputs, inputs, others, buffers)
    if not groups:
        return shares
    graph = ChannelGraph(copy.deepcopy(model), example_input)
    rows = {graph.model.get_submodule(layer.name): row for row, layer in enumerate(layers)}
    for column, group in enumerate(groups):
        kept = group.kept(0.5, FINEST_MULTIPLE)
        removed = 1 - kept / group.channels
        members = graph.members(group.name)
        before = _counts(members, rows)
        with graph.cut(group.name, graph.any_channels(group.name, kept)):
            after = _counts(members, rows)
        for row, shape in before.shapes.items():
            outputs[row, column] = (1 - after.shapes[row][0] / shape[0]) / removed
            inputs[row, column] = (1 - after.shapes[row][1] / shape[1]) / removed
        others[column] = (before.others - after.others) / every / removed
        buffers[column] = (before.buffers - after.buffers) / stored / removed
    return shares


@dataclass(frozen=True)
class _Counts:
    """What some modules hold: row of a layer -> its shape, other parameters, and bytes stored in addition to parameters."""

    shapes: Mapping[int, tuple[int, ...]]
    others: int
    buffers: int


def _counts(modules: Collection[nn.Module], rows: Mapping[nn.Module, int]) -> _Counts:
    shapes = {rows[module]: _shape_of(module) for module in modules if module in rows}
    parameters = {parameter for module in modules for parameter in module.parameters(recurse=False)}
    others = sum(parameter.numel() for parameter in parameters) - sum(map(math.prod, shapes.values()))
    own = (pair for module in modules for pair in stored_as_is(module, dict(module.named_parameters())))
    return _Counts(shapes, others, sum(tensor.nbytes for path, tensor in own if "." not in path))


class AnalyticCost:
    """Costs of a space's points from their codes.

    BOPs, parameters and, without masks, to a byte per layer and to five where its activations' range is dynamic, packed bytes as
    counted of a policy are exact where every other parameter (batch-norm's,
    biases) has one channel dimension. Operators and removed blocks are not counted here; FLOPs outside the layers are scaled like those parameters. Trials store what is counted of the built model.

    Args:
        layers: all of the model's, those that no policy may touch too.
        model, example_input: the uncompressed model and its input, shape [1, ...].
    """

    def __init__(self, space: Space, layers: Sequence[Layer], model: nn.Module, example_input: Batch) -> None:
        self._space, self._layers = space, list(layers)
        self._shares = channel_shares(model, example_input, layers, space.groups)
        self._macs = np.array([layer.macs for layer in layers], dtype=float)
        self._weights = np.array([layer.weights for layer in layers], dtype=float)
        self._other_macs = macs_by_module(copy.deepcopy(model), example_input)[""] - self._macs.sum()
        self._other_weights = _other_parameters(model, layers)
        # A recurrent layer has two matrices, each with a scale for every row.
        rows = [_shape(model, layer.name)[0] * (2 if layer.is_recurrent else 1) for layer in layers]
        self._channels = np.array(rows, dtype=float)
        self._inputs = np.array([math.prod(_shape(model, layer.name)[1:]) for layer in layers], dtype=float)
        self._buffers = _buffer_bytes(model)
        self._has_zero_points = space.scheme.group_grids == "affine"
        self._has_one_scale = np.array([layer.is_product and space.scheme.weights == "tensor" for layer in layers])
        self._read_knobs()

    @property
    def is_exact(self) -> bool:
        """Whether the space leaves every layer in place, of its kind and on integer grids, which is what is counted here."""
        return all(kind.is_counted for kind in self._space.choices.searched())

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """[n, 6] of codes [n, knobs of the space]: a column per `COUNTED`, and those `OF_MACHINES`.

        The latter are BOPs and bytes where a layer is multiplied as wide as the wider of its weights and activations, floats as
        wide as those of the whole model, and nothing is narrower than a byte.
        """
        kept = self._kept(codes)
        outputs = 1 - (1 - kept) @ self._shares.outputs.T
        inputs = 1 - (1 - kept) @ self._shares.inputs.T
        fraction = outputs * inputs
        weight_bits, activation_bits = (self._decided(kind, codes) for kind in DECIDED[:2])
        # Activations are in bfloat16 only where the weights are too, see `LayerPolicy`.
        alone = (activation_bits == BFLOAT16_BITS) & (weight_bits != BFLOAT16_BITS)
        activation_bits = np.where(alone, FULL_PRECISION, activation_bits)
        macs, weights, rest = self._macs * fraction, self._weights * fraction, 1 - (1 - kept) @ self._shares.others
        others, other_macs = self._other_weights * rest, self._other_macs * rest
        buffers = self._buffers * (1 - (1 - kept) @ self._shares.buffers.T)
        scales = np.where(self._has_one_scale, 1, self._channels * outputs)
        sizes = self._group_sizes(codes, weight_bits, activation_bits)
        groups = np.ceil(np.round(self._inputs * inputs, 6) / np.maximum(sizes, 1))
        scales = np.where(sizes > 0, self._channels * outputs * groups, scales)
        has_origins = (sizes > 0) & self._has_zero_points
        grids = grid_bytes(scales, weight_bits <= GRID_BITS, activation_bits <= GRID_BITS, has_origins)
        floats = self._float_table[codes[:, self._float_knob]] if self._float_knob is not None else self._float_table
        multiplied = np.maximum(np.maximum(weight_bits, activation_bits), GRID_BITS)
        multiplied = np.where(multiplied == FULL_PRECISION, floats[:, None], multiplied)
        columns = {
            "flops": flops(macs, other_macs),
            "bops": bops(macs, weight_bits, activation_bits),
            "parameters": parameters(weights, others),
            "packed_bytes": packed(weights * weight_bits / 8, grids, others * FULL_PRECISION / 8, buffers),
        }
        multiplied_bits = bops(macs, multiplied, multiplied) + other_macs * floats**2
        stored = (weights * np.maximum(weight_bits, GRID_BITS)).sum(axis=1) + others * FULL_PRECISION
        return np.stack([*(columns[name] for name in COUNTED), multiplied_bits, stored / 8], axis=1)

    def keys(self, codes: np.ndarray) -> list[bytes]:
        """What distinguishes points: those of equal channels, bits, masks and recovery are one model."""
        others = [
            index for index, knob in enumerate(self._space.knobs) if knob.kind not in ("width", "channels", "multiple")
        ]
        rows = np.hstack([np.round(self._kept(codes), 6), codes[:, others]])
        return [row.tobytes() for row in rows]

    def _read_knobs(self) -> None:
        """Tables from choices to kept fractions and bits."""
        knobs = {(knob.kind, knob.governs): index for index, knob in enumerate(self._space.knobs)}
        self._width_knob = knobs.get(("width", ()))
        self._channel_knobs = [knobs.get(("channels", (group.name,))) for group in self._space.groups]
        self._multiple_knob = knobs.get(("multiple", ()))
        # A decision with one choice is not a knob: what the space fixes is read from one of its policies.
        fixed = self._space.uniform({})
        widths = self._choices(self._width_knob, fixed.width)
        multiples = self._choices(self._multiple_knob, self._space.channel_multiple)
        self._kept_tables = [
            np.array([[[group.kept(width * (1 - removed), multiple) / group.channels
                        for removed in self._choices(knob, fixed.channels.get(group.name, 0.0))] for width in widths]
                      for multiple in multiples])
            for group, knob in zip(self._space.groups, self._channel_knobs, strict=True)
        ]  # fmt: skip
        self._float_knob = knobs.get((FLOATS.name, ()))
        precisions = self._choices(self._float_knob, fixed.float_precision)
        self._float_table = np.array([FLOAT_BITS.get(precision, BFLOAT16_BITS) for precision in precisions])
        self._layer_knobs = {kind: self._layer_tables(kind, fixed) for kind in DECIDED}

    def _layer_tables(self, kind: str, fixed: Policy) -> list[tuple[int | None, np.ndarray]]:
        """Per layer, the knob of a kind that governs it, if any, and the knob's choices."""
        if kind == DECIDED[2]:  # which only some bits leave to decide
            offered = (bits for bits in GROUPED_BITS if bits in self._space.choices["weight_bits"])
            fixed = self._space.uniform(
                {"weight_bits": next(offered, FULL_PRECISION), "activation_bits": FULL_PRECISION}
            )
        knobs = [(index, knob) for index, knob in enumerate(self._space.knobs) if knob.kind == kind]
        governing = {name: index for index, knob in knobs for name in knob.governs}
        tables = []
        for layer in self._layers:
            if not layer.is_product:
                tables.append(self._own_table(layer, kind, fixed))
                continue
            knob = governing.get(layer.name)
            choices = self._choices(knob, getattr(fixed.layer(layer.name), kind))
            tables.append((knob, np.array(choices, dtype=float)))
        return tables

    def _own_table(self, layer: Layer, kind: str, fixed: Policy) -> tuple[int | None, np.ndarray]:
        """The knob of a recurrent layer's matrices or an embedding's table, if there is one, and what its choices are for a kind of
        other layers."""
        own = RECURRENT if layer.is_recurrent else EMBEDDINGS
        found = [i for i, knob in enumerate(self._space.knobs) if knob.kind == own and layer.name in knob.governs]
        knob = found[0] if found else None
        if layer.is_recurrent:
            choices = self._choices(knob, fixed.recurrent.get(layer.name, FLOAT32))
            bits = {DECIDED[0]: weight_bits_of, DECIDED[1]: read_bits_of}
        else:
            choices = self._choices(knob, fixed.embeddings.get(layer.name, FULL_PRECISION))
            bits = {DECIDED[0]: float, DECIDED[1]: lambda _: FULL_PRECISION}
        return knob, np.array([float(bits[kind](choice)) if kind in bits else 0.0 for choice in choices])

    def _choices(self, knob: int | None, fixed: Choice) -> tuple:
        return (fixed,) if knob is None else self._space.knobs[knob].choices

    def _kept(self, codes: np.ndarray) -> np.ndarray:
        """Fraction of channels kept [n, groups]."""
        none = np.zeros(len(codes), dtype=int)
        width, multiple = (none if knob is None else codes[:, knob] for knob in (self._width_knob, self._multiple_knob))
        columns = [
            table[multiple, width, none if knob is None else codes[:, knob]]
            for table, knob in zip(self._kept_tables, self._channel_knobs, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(codes), 0))

    def _group_sizes(self, codes: np.ndarray, weight_bits: np.ndarray, activation_bits: np.ndarray) -> np.ndarray:
        """How many inputs share a scale [n, layers], 0 where all do; see `LayerPolicy`."""
        is_grouped = np.isin(weight_bits, GROUPED_BITS) & (activation_bits == FULL_PRECISION)
        return np.where(is_grouped, self._decided(DECIDED[2], codes), 0)

    def _decided(self, kind: str, codes: np.ndarray) -> np.ndarray:
        """What is decided of layers, [n, layers]."""
        none = np.zeros(len(codes), dtype=int)
        return np.stack([table[none if knob is None else codes[:, knob]] for knob, table in self._layer_knobs[kind]], 1)


def _other_parameters(model: nn.Module, layers: Sequence[Layer]) -> int:
    """Parameters that are not the weight of a layer."""
    weights = sum(math.prod(_shape(model, layer.name)) for layer in layers)
    return sum(parameter.numel() for parameter in model.parameters()) - weights


def _buffer_bytes(model: nn.Module) -> int:
    """Bytes of a packed file that are not parameters, such as the statistics of batch-norm."""
    return sum(tensor.nbytes for _, tensor in stored_as_is(model, dict(model.named_parameters())))


def _shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """Of a layer's weight, or of all matrices of a recurrent layer."""
    return _shape_of(model.get_submodule(name))


def _shape_of(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, RecurrentLayer):
        return matrix_shape(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)
