"""The layers of a model that a policy may touch, with what they cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

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
        kind: a value of `LAYER_KINDS`.
        block: dotted path of the module that holds it, "" at the top; layers of one block may share a knob.
        weights: number of weight elements, bias excluded.
        macs: multiply-adds for one sample, as fvcore counts them.
        sparsifiable_2_4: whether the weight's input dimension is a multiple of four.
        shape: of the weight, [out, in / groups, kernel ...].
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


def find_layers(model: nn.Module, example_input: Tensor) -> list[Layer]:
    """Layers of `model` in module order that run on `example_input` (shape [1, ...]): once, or linear ones again and again.

    A linear layer of a recurrent network has one weight and one input at every step, which one decision fits. What follows
    a convolution that runs twice is not folded into it alike. The model ends in eval mode.
    """
    macs = macs_by_module(model, example_input)
    runs = runs_of_modules(model, example_input)
    return [
        _describe(name, module, macs[name])
        for name, module in model.named_modules()
        if type(module) in LAYER_KINDS and _is_taken_up(module, runs[name])
    ]


def why_untouched(model: nn.Module, example_input: Tensor) -> dict[str, str]:
    """Every module with a matrix or kernel of its own that is none of `find_layers` -> the reason, in module order.

    The model itself goes under its class. It ends in eval mode.
    """
    runs = runs_of_modules(model.eval(), example_input)
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        owned = [key for key, weight in module.named_parameters(recurse=False) if _dimensions(weight) > 1]
        if owned and (reason := _why_untouched(module, owned, runs[name])):
            reasons[name or type(model).__name__] = reason
    return reasons


def _why_untouched(module: nn.Module, owned: list[str], runs: int) -> str | None:
    kind = type(module).__name__
    if type(module) in LAYER_KINDS:
        if _is_taken_up(module, runs):
            return None
        return f"a convolution that runs {runs} times in a pass" if runs else "it is never called as a layer"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"the matrices of nn.{kind} are no linear layers; slimfront.workloads.digits_rnn is written with such"
    if isinstance(module, nn.MultiheadAttention):
        return "an attention that reads several inputs, takes masks or hides from hooks has no layers of its own"
    if parent := next((known for known in LAYER_KINDS if isinstance(module, known)), None):
        return f"{kind} is a subclass of nn.{parent.__name__}, which may compute something else"
    return f"{', '.join(owned)} of {kind}: only convolutions (Conv1d to Conv3d) and linear layers are taken up"


def _is_taken_up(layer: nn.Module, runs: int) -> bool:
    return runs == 1 or (runs > 1 and isinstance(layer, nn.Linear))


def _dimensions(weight: Tensor) -> int:
    """Those that have more than one element: a scale per channel has one, however it is shaped."""
    return sum(size > 1 for size in weight.shape)


def macs_by_module(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Dotted module path -> multiply-adds of one sample ("" is the whole model), counted by fvcore; ends in eval mode."""
    analysis = flop_analysis(model, example_input)
    return {name: int(count) for name, count in analysis.by_module().items()}


def flop_analysis(model: nn.Module, example_input: Tensor) -> FlopCountAnalysis:
    """A quiet fvcore analysis of `model`, which is put into eval mode."""
    analysis = FlopCountAnalysis(model.eval(), example_input)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


@torch.no_grad()
def runs_of_modules(model: nn.Module, example_input: Tensor) -> Counter[str]:
    """How often each module runs on `example_input`."""
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    try:
        model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _describe(name: str, module: nn.Module, macs: int) -> Layer:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return Layer(
        name=name,
        kind=LAYER_KINDS[type(module)],
        block=name.rpartition(".")[0],
        weights=weight.numel(),
        macs=macs,
        sparsifiable_2_4=weight[0].numel() % 4 == 0,
        shape=tuple(weight.shape),
        groups=getattr(module, "groups", 1),
    )
