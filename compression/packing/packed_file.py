"""A candidate's weights as one packed file: safetensors whose tensors take the bits the policy gave them.

The file holds, by name:

| tensor | what |
|---|---|
| `LAYER.weight` | a weight packed as `compression.packing.packed` writes it, uint8; its shape, bits and format are in the metadata |
| `LAYER.weight_ih_l0` and the like | a matrix of a recurrent layer on 8 bits, packed in the same way; `.scale` follows its name |
| `LAYER.weight.scale` | scales of an integer weight, float32, [channels], or [1] where all are equal, or [channels, groups] |
| `LAYER.weight.zero_point` | zero points of groups of inputs, int8, [channels, groups], where their grids are affine |
| `LAYER.weight.table` | values of a codebook, float32 |
| `LAYER.input.scale`, `.zero_point` | quantization parameters of a layer's input; `MODULE.addition0.1.scale` of an addition's operand |
| `EMBEDDING.weight` | a table on 8 or 4 bits, packed in the same way; `.scale` follows its name |
| any other name | a parameter or buffer as it is |

A batch-norm that follows a layer in integers or bfloat16 is folded into it. The metadata also contain a digest of the weights
that the file represents, computed before they were packed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from ...core.documents import json_document
from ...core.errors import DocumentError
from ...core.validation import shortened
from ...spaces.models.layers import LAYER_KINDS, WeightedLayer
from ...spaces.models.recurrent import RecurrentLayer, matrix_names
from ...spaces.policies.candidate import Candidate, Quantization, QuantizedWeight, dequantized
from ...spaces.policies.layer_policy import GROUP_SIZES, LayerPolicy
from ...spaces.policies.quantization_scheme import Scheme
from ...spaces.policies.recurrent_weights import INT8_BITS
from .own_state import distinct_tensors
from .packed import FLOATS, Format, Packed, pack, smallest_format, unpack

Number = TypeVar("Number", int, np.ndarray)

SCHEMA = "2"
WITH_GROUPS = "3"
"""The schema of files with scales by groups of inputs, which readers of `SCHEMA` would misread."""


def save_packed(candidate: Candidate, path: Path) -> Path:
    """Write the packed file of `candidate`."""
    packed, grids = _packed(candidate), _grids(candidate)
    payloads = {name: np.frombuffer(weight.payload, np.uint8) for name, weight in packed.items()}
    about = {name: [w.format, list(w.shape), w.bits, w.values] for name, w in packed.items()}
    metadata = {
        "schema": SCHEMA,
        "packed": json.dumps(about),
        "grids": json.dumps(sorted(grids)),
        "digest": digest(weights_of(candidate)),
    }
    if sizes := {f"{name}.weight": w.group_size for name, w in candidate.quantization.weights.items() if w.group_size}:
        metadata |= {"schema": WITH_GROUPS, "groups": json.dumps(sizes)}
    save_file({**payloads, **grids, **_state(candidate)}, path, metadata)
    _sort_header(path)
    return path


def _sort_header(path: Path) -> None:
    """Order the keys of the header, which safetensors writes in another order each time: equal weights are equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the tensors begin where the header ends"
        file.seek(8)
        file.write(text.ljust(length))


def packed_bytes(path: Path) -> int:
    """Bytes of a packed file without its header, whose first eight bytes give the header's length."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header


def counted_bytes(candidate: Candidate) -> int:
    """The `packed_bytes` of `candidate`, counted without packing.

    Exact once the candidate has its grids. Before, what its exported graph decides is left out: batch-norm that will be
    folded is counted as it stands, 12 bytes a channel too many (16 where the layer has a bias already), the grids of an
    addition are not, 10 bytes, nor that rounding makes more weights zero.
    """
    bits = {name: candidate.policy.layer(name).weight_bits for name in _layer_weights(candidate)}
    stored = {name: (array.shape, int(np.count_nonzero(array))) for name, array in _stored_weights(candidate).items()}
    weights = sum(
        smallest_format(shape[0], math.prod(shape[1:]), count, bits[name])[1] for name, (shape, count) in stored.items()
    )
    for array, width in _matrices(candidate).values():
        weights += smallest_format(len(array), array[0].size, int(np.count_nonzero(array)), width)[1]
    arrays = (*_grids(candidate).values(), *_state(candidate).values())
    return weights + sum(array.nbytes for array in arrays) + _bytes_of_grids_to_come(candidate)


def grid_bytes(
    scales: Number, has_weight_grid: Number, has_activation_grid: Number, has_zero_points: Number | bool = False
) -> Number:
    """Bytes of layers' integer grids: float32 `scales` of a weight and perhaps their zero points, and the scale and zero point
    of what a layer reads.

    Numbers, or arrays that broadcast together.
    """
    return (4 + has_zero_points) * scales * has_weight_grid + 5 * has_activation_grid


def scales_of(layer: LayerPolicy, scheme: Scheme, rows: int, columns: int) -> int:
    """How many scales the grid of a weight with `columns` inputs has, where it has one."""
    if layer.has_groups:
        return rows * -(-columns // layer.weight_group_size)
    return rows if scheme.weights == "channel" else 1


def has_zero_points(layer: LayerPolicy, scheme: Scheme) -> bool:
    """Whether the grid of a weight has zero points that are not 0."""
    return layer.has_groups and scheme.group_grids == "affine"


def table_bytes(bits: int) -> int:
    """Bytes of a codebook's values, float32."""
    return 4 * 2**bits


def stored_as_is(model: nn.Module, packed: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that a file does not pack: parameters and buffers but the `packed` ones and the counts of training, each
    once."""
    for name, tensor in distinct_tensors(model):
        if name not in packed and not name.endswith(".num_batches_tracked"):
            yield name, tensor


def _bytes_of_grids_to_come(candidate: Candidate) -> int:
    """Bytes of scales, zero points and tables that the policy asks for and the candidate does not have yet."""
    policy, quantization = candidate.policy, candidate.quantization
    total = 0
    for name, weight in _layer_weights(candidate).items():
        layer = policy.layer(name)
        scales = scales_of(layer, policy.scheme, len(weight), weight[0].numel())
        weight_grid = layer.has_weight_grid and name not in quantization.weights
        read_grid = layer.has_activation_grid and name not in quantization.inputs
        total += grid_bytes(scales, weight_grid, read_grid, has_zero_points(layer, policy.scheme))
        if layer.has_codebook and name not in quantization.codes:
            total += table_bytes(layer.weight_bits)
    to_come = _matrices(candidate).keys() - _quantized_matrices(quantization).keys()
    return total + sum(4 * len(_matrices(candidate)[path][0]) for path in to_come)


def load_packed(path: Path, most_values: int = 2**32) -> dict[str, np.ndarray]:
    """The weights, biases and other tensors of the model that a packed file represents, by name, bit for bit.

    Args:
        most_values: that its packed weights may have in all: zeros take no bytes, and a file from elsewhere may claim any
            number of them.

    Raises:
        ValueError: another schema, or no packed file.
    """
    with _opened(path) as file:
        metadata = file.metadata()
        if metadata["schema"] not in (SCHEMA, WITH_GROUPS):
            raise ValueError(
                f"{path.name} has schema {metadata['schema']}, this slimfront reads {SCHEMA} and {WITH_GROUPS}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        groups = _group_sizes(metadata)
        grids = {name: tensors.pop(name) for name in json_document(metadata["grids"])}
        for name, about in json_document(metadata["packed"]).items():
            packed = _described(about, tensors[name])
            most_values -= math.prod(packed.shape)
            if most_values < 0:
                raise ValueError(f"{path.name} claims more weights than there can be")
            tensors[name] = _decoded(packed, grids, name, groups.get(name, 0))
        return tensors


def recorded_digest(path: Path) -> str:
    """The digest that a packed file's metadata hold.

    Raises:
        ValueError: no packed file.
    """
    with _opened(path) as file:
        return file.metadata()["digest"]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open packed file; a malformed one raises ValueError, whatever the reader raised."""
    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, DocumentError, LookupError, TypeError, AttributeError, OSError, ArithmeticError) as error:
        raise ValueError(f"{path.name} is not a packed file: {type(error).__name__}: {error}") from error


def _group_sizes(metadata: Mapping[str, str]) -> dict[str, int]:
    """Weight -> how many of its inputs share a scale, where groups do."""
    sizes = json_document(metadata.get("groups", "{}"))
    if not all(type(size) is int and size in GROUP_SIZES for size in sizes.values()):
        raise ValueError(f"{shortened(sizes)} describes no groups of inputs")
    return sizes


def _described(about: Any, payload: np.ndarray) -> Packed:
    """The packed weight that an entry of the metadata describes."""
    form, shape, bits, values = about
    counts = [*shape, bits, values]
    if form not in get_args(Format) or not shape or not all(type(n) is int and n >= 0 for n in counts) or bits > 32:
        raise ValueError(f"{shortened(about)} describes no packed weight")
    return Packed(form, tuple(shape), bits, values, payload.tobytes())


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """First 16 hex digits of the SHA-256 of names, types, shapes and bytes."""
    content = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        content.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()[:16]


def weights_of(candidate: Candidate) -> dict[str, np.ndarray]:
    """The weights that `candidate` computes with, by name: dequantized and decoded."""
    real = _float_weights(candidate)
    real |= {name: weight.values.astype(np.float32) for name, weight in candidate.quantization.bfloat16.items()}
    real |= {name: weight.values() for name, weight in candidate.quantization.weights.items()}
    for name, coded in candidate.quantization.codes.items():
        real[name] = coded.values()
    matrices = {path: weight.values() for path, weight in _quantized_matrices(candidate.quantization).items()}
    return {**_state(candidate), **{f"{name}.weight": array for name, array in real.items()}, **matrices}


def _packed(candidate: Candidate) -> dict[str, Packed]:
    """Every layer's weight, packed."""
    arrays, policy = _stored_weights(candidate), candidate.policy
    packed = {f"{name}.weight": pack(array, policy.layer(name).weight_bits) for name, array in arrays.items()}
    return packed | {path: pack(array, bits) for path, (array, bits) in _matrices(candidate).items()}


def _stored_weights(candidate: Candidate) -> dict[str, np.ndarray]:
    """Layer -> its weight as it is stored: integers, codes or floats."""
    arrays = _float_weights(candidate)
    arrays |= {name: weight.values for name, weight in candidate.quantization.bfloat16.items()}
    arrays |= {name: weight.integers for name, weight in candidate.quantization.weights.items()}
    return arrays | {name: weight.codes for name, weight in candidate.quantization.codes.items()}


def _float_weights(candidate: Candidate) -> dict[str, np.ndarray]:
    """Layer -> weight, of those that stay in float32."""
    quantization = candidate.quantization
    changed = quantization.weights.keys() | quantization.codes.keys() | quantization.bfloat16.keys()
    weights = _layer_weights(candidate).items()
    return {name: weight.detach().cpu().numpy() for name, weight in weights if name not in changed}


def _layer_weights(candidate: Candidate) -> dict[str, Tensor]:
    modules = candidate.model.named_modules()
    layers = {name: module for name, module in modules if isinstance(module, WeightedLayer)}
    return {name: layer.weight for name, layer in layers.items() if type(layer) in LAYER_KINDS}


def _matrices(candidate: Candidate) -> dict[str, tuple[np.ndarray, int]]:
    """Path -> matrix and bits, of the recurrent layers and embeddings that the policy puts on grids: integers, or floats where it has
    none yet."""
    bits = {f"{name}.weight": bits for name, bits in candidate.policy.embeddings.items()}
    for name in candidate.policy.recurrent:
        layer = cast("RecurrentLayer", candidate.model.get_submodule(name))
        bits |= {f"{name}.{key}": INT8_BITS for key in matrix_names(layer)}
    found = {path: candidate.model.get_parameter(path).detach().cpu().numpy() for path in bits}
    found |= {path: weight.integers for path, weight in _quantized_matrices(candidate.quantization).items()}
    return {path: (found[path], bits[path]) for path in bits}


def _quantized_matrices(quantization: Quantization) -> dict[str, QuantizedWeight]:
    """Path -> matrix of recurrent layers and embeddings that are on grids."""
    tables = {f"{name}.weight": table for name, table in quantization.embeddings.items()}
    return {**quantization.recurrent, **tables}


def _own(module: nn.Module) -> Iterator[str]:
    """Names of a module's own parameters and buffers, not those of its parts."""
    return (name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))


def _state(candidate: Candidate) -> dict[str, np.ndarray]:
    """The tensors that are stored unchanged: all but layers' weights, folded batch-norms and counters of training.

    A batch-norm that is folded and also runs after something else is stored too; `rounded_model` knows by the policy's model which it is.
    """
    packed = {f"{name}.weight" for name in _layer_weights(candidate)} | _matrices(candidate).keys()
    gone = {*candidate.quantization.norms.values()} - candidate.quantization.kept_norms
    folded = {f"{norm}.{key}" for norm in gone for key in _own(candidate.model.get_submodule(norm))}
    kept = {
        name: tensor.detach().cpu().contiguous().numpy()
        for name, tensor in stored_as_is(candidate.model, packed)
        if name not in folded
    }
    stored = {**candidate.quantization.weights, **candidate.quantization.bfloat16}
    biases = {f"{name}.bias": weight.bias for name, weight in stored.items() if weight.bias is not None}
    return kept | {name: bias.astype(np.float32) for name, bias in biases.items()}


def _grids(candidate: Candidate) -> dict[str, np.ndarray]:
    """Scales, zero points and tables."""
    quantization = candidate.quantization
    read = {f"{name}.input": grid for name, grid in quantization.inputs.items()}
    read |= {f"{path}.addition{n}.{operand}": grid for (path, n, operand), grid in quantization.additions.items()}
    return {
        **{f"{name}.weight.scale": _scale(weight) for name, weight in quantization.weights.items()},
        **{f"{path}.scale": _scale(weight) for path, weight in _quantized_matrices(quantization).items()},
        **_zero_points(quantization),
        **{f"{name}.weight.table": coded.table for name, coded in quantization.codes.items()},
        **{f"{name}.scale": np.atleast_1d(grid.scale) for name, grid in read.items()},
        **{f"{name}.zero_point": np.atleast_1d(grid.zero_point) for name, grid in read.items()},
    }


def _scale(weight: QuantizedWeight) -> np.ndarray:
    scale = weight.grid.scale
    return scale[:1] if not weight.group_size and (scale == scale[0]).all() else scale


def _zero_points(quantization: Quantization) -> dict[str, np.ndarray]:
    """Those of weights, which only grids by groups of inputs have."""
    origins = {name: weight.grid.zero_point for name, weight in quantization.weights.items() if weight.group_size}
    return {f"{name}.weight.zero_point": origin for name, origin in origins.items() if origin.any()}


def _decoded(packed: Packed, grids: Mapping[str, np.ndarray], name: str, group_size: int) -> np.ndarray:
    scale, table = grids.get(f"{name}.scale"), grids.get(f"{name}.table")
    if scale is not None:
        zero_point = grids.get(f"{name}.zero_point", np.zeros_like(scale, np.int8))
        return dequantized(unpack(packed, np.int8), scale, zero_point, group_size)
    if table is not None:
        return table[unpack(packed, np.int8)]
    return unpack(packed, FLOATS[packed.bits]).astype(np.float32)
