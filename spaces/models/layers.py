"""The layers of a model that a policy may touch, with what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.hooks import removed_after
from .embeddings import EMBEDDING_KIND, tables_of, why_no_table
from .recurrent import RECURRENT_KINDS, RecurrentLayer, is_single_layer, matrix_shape
from .recurrent_macs import RECURRENT_OPERATIONS, macs_of_recurrence
from .unread import read_elsewhere, unread_layers

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
WeightedLayer = Convolution | nn.Linear

LAYER_KINDS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.Linear: "linear",
}


@dataclass(frozen=True)
class Layer:
    """A module whose weight a policy may quantize or sparsify.

    Attributes:
        name: dotted module path.
        kind: a value of `LAYER_KINDS` or `RECURRENT_KINDS`, or `EMBEDDING_KIND`.
        block: dotted path of the module that holds it, "" at the top; layers of one block may share a knob.
        weights: number of weight elements, bias excluded; of a recurrent layer, in all its matrices.
        macs: multiply-adds for one sample, as fvcore counts them.
        sparsifiable_2_4: whether the weight's input dimension is a multiple of four.
        shape: of the weight, [out, in / groups, kernel ...] or [rows, columns]; of a recurrent layer, as `matrix_shape` counts.
        groups: of a convolution; 1 for a linear layer.
    """

    name: str
    kind: str
    block: str
    weights: int
    macs: int
    sparsifiable_2_4: bool
    shape: tuple[int, ...] = field(default=(), compare=False)
    groups: int = field(default=1, compare=False)

    @property
    def is_recurrent(self) -> bool:
        """Whether it is an `nn.GRU`, `nn.LSTM` or `nn.RNN`, of which `Policy.recurrent` decides."""
        return self.kind in RECURRENT_KINDS.values()

    @property
    def is_embedding(self) -> bool:
        """Whether it is an `nn.Embedding`, of which `Policy.embeddings` decides."""
        return self.kind == EMBEDDING_KIND

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or linear layer, of which `Policy.layers` decides."""
        return self.kind in LAYER_KINDS.values()


def layer_at(model: nn.Module, path: str) -> WeightedLayer:
    """The convolution or linear layer at a dotted path.

    Raises:
        TypeError: a module of another kind is there.
        AttributeError: there is no such module.
    """
    module = model.get_submodule(path)
    if not isinstance(module, WeightedLayer):
        raise TypeError(f"{path} is a {type(module).__name__}, not a convolution or linear layer")
    return module


def find_layers(model: nn.Module, example_input: Batch) -> list[Layer]:
    """Layers of `model` in module order that run on `example_input` (shape [1, ...]), however often; those that no output depends on are
    left out, and those whose weight is read outside of their calls.

    A layer that runs again has one weight and one kind of input, which one decision fits; what follows its runs is not folded into it.
    The model ends in eval mode.
    """
    return [layer for layer in find_every_layer(model, example_input) if layer.is_product]


def find_every_layer(model: nn.Module, example_input: Batch) -> list[Layer]:
    """As `find_layers`, with the recurrent layers that have one pair of matrices for each direction, and the embeddings whose tables
    may be stored in fewer bits."""
    return decidable(all_layers(model, example_input), model, example_input)


def decidable(every: Sequence[Layer], model: nn.Module, example_input: Batch) -> list[Layer]:
    """Of all the model's layers, those that a policy may touch, see `find_every_layer`."""
    runs = runs_of_modules(model, example_input)
    names = [layer.name for layer in every if runs[layer.name]]
    left_out = unread_layers(model, example_input, names) | read_elsewhere(model, example_input, names)
    left_out |= why_no_table(model, example_input).keys()
    return [layer for layer in every if layer.name in names and layer.name not in left_out]


def all_layers(model: nn.Module, example_input: Batch) -> list[Layer]:
    """All layers in module order, also those that no policy may touch; `find_every_layer` otherwise."""
    macs, tables = macs_by_module(model, example_input), set(tables_of(model))
    return [
        _describe(name, module, macs[name])
        for name, module in model.named_modules()
        if type(module) in LAYER_KINDS or is_single_layer(module) or name in tables
    ]


def macs_by_module(model: nn.Module, example_input: Batch) -> dict[str, int]:
    """Dotted module path -> multiply-adds of one sample ("" is the whole model), counted by fvcore, which does not
    know recurrent layers, and by `macs_of_recurrence`; ends in eval mode."""
    analysis = flop_analysis(model, example_input)
    return {name: int(count) for name, count in analysis.by_module().items()}


def flop_analysis(model: nn.Module, example_input: Batch) -> FlopCountAnalysis:
    """A quiet fvcore analysis of `model`, which is put into eval mode."""
    analysis = FlopCountAnalysis(model.eval(), (cast("Tensor", example_input),))  # which may be a dictionary as well
    analysis.set_op_handle(**dict.fromkeys(RECURRENT_OPERATIONS, macs_of_recurrence))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


@torch.no_grad()
def runs_of_modules(model: nn.Module, example_input: Batch) -> Counter[str]:
    """How often each module runs on `example_input`."""
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    with removed_after(hooks):
        model(example_input)
    return calls


def _describe(name: str, module: nn.Module, macs: int) -> Layer:
    block = name.rpartition(".")[0]
    if isinstance(module, RecurrentLayer):
        rows, columns = matrix_shape(module)
        return Layer(name, RECURRENT_KINDS[type(module)], block, rows * columns, macs, False, (rows, columns))
    assert isinstance(module, WeightedLayer | nn.Embedding)
    weight = module.weight
    if isinstance(module, nn.Embedding):
        return Layer(name, EMBEDDING_KIND, block, weight.numel(), macs, False, tuple(weight.shape))
    return Layer(
        name=name,
        kind=LAYER_KINDS[type(module)],
        block=block,
        weights=weight.numel(),
        macs=macs,
        sparsifiable_2_4=weight[0].numel() % 4 == 0,
        shape=tuple(weight.shape),
        groups=getattr(module, "groups", 1),
    )
