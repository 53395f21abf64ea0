"""A model as a graph of torch.export, captured once per architecture: tracing takes seconds, and bits and weights do not change it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, fx, nn

from ...core.batch import Batch, device_of, mapped, shapes_of
from ...core.errors import CompressionError
from ...core.interrupts import raise_if_interrupted
from ...spaces.models.architecture import architecture
from ...spaces.models.exported_graph import under_first_paths
from ...workloads.workload import describe

if TYPE_CHECKING:
    from torchao.quantization.pt2e.quantizer import Quantizer

ENTRIES = 2
"""The number of cached graphs: the uncompressed model's and the newest candidate's."""

_graphs: OrderedDict[tuple, fx.GraphModule] = OrderedDict()


@contextmanager
def capturing() -> Iterator[None]:
    """Report what torch.export raises inside the context as the model's own fault.

    Raises:
        CompressionError: torch.export cannot capture the model.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        # The exporter raises whatever its tracing meets in a model it cannot capture.
        raise_if_interrupted(error)
        raise CompressionError(f"torch.export cannot capture the model: {describe(error)}") from error


def captured(model: nn.Module, inputs: Batch) -> fx.GraphModule:
    """The graph of `model`, which ends in eval mode, for inputs of this shape; the caller may change it.

    Raises:
        RuntimeError, ValueError, TypeError, AssertionError, KeyError: whatever torch.export meets in a model it cannot trace.
    """
    if _has_hidden_tensors(model.eval()):
        return _traced(model, inputs)
    state = model.state_dict()
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items())
    key = (architecture(model), shapes, tuple(shapes_of(inputs)), device_of(inputs))
    _graphs[key] = _graphs.pop(key, None) or _traced(model, inputs)
    while len(_graphs) > ENTRIES:
        _graphs.popitem(last=False)
    graph = copy.deepcopy(_graphs[key])
    graph.load_state_dict(state, strict=False)  # constants of the graph are not in it
    return graph


def with_observers(graph: fx.GraphModule, quantizer: Quantizer) -> fx.GraphModule:
    """PT2E's graph that observes what `quantizer` asks for.

    Functions of the two libraries that look for a graph's device keep every graph that they were asked about; here they forget it.
    """
    import torch.ao.quantization.fx.utils as torch_ao  # only here: both take two seconds
    import torchao.utils as torchao
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    try:
        return prepare_pt2e(graph, quantizer)
    finally:
        for device_of_graph in (torch_ao.assert_and_get_unique_device, torchao._assert_and_get_unique_device):
            device_of_graph.cache_clear()


def _traced(model: nn.Module, inputs: Batch) -> fx.GraphModule:
    exported = torch.export.export(model, (mapped(torch.Tensor.contiguous, inputs),)).module()
    return under_first_paths(cast("fx.GraphModule", exported), model)


def _has_hidden_tensors(model: nn.Module) -> bool:
    """Whether a tensor that is not in its state might differ between two models of one architecture."""
    return any(
        module._non_persistent_buffers_set or any(isinstance(value, Tensor) for value in vars(module).values())
        for module in model.modules()
    )
