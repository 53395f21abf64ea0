"""What kind of network a model is; `presets` holds the choices that fit each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.batch import Batch
from .models.layers import runs_of_modules
from .presets import Family

PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum"}


class _Attending(TorchFunctionMode):
    """Notices attention however it is written: a call of torch's own, or a product of what a softmax has made.

    Attributes:
        found: whether there was any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found, self._weights = False, []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        self.found |= name == "scaled_dot_product_attention" or (name in PRODUCTS and self._multiplies_weights(args))
        if name == "softmax":
            self._weights.append(output)  # kept: the address of a freed tensor is soon that of another
        return output

    def _multiplies_weights(self, args: tuple) -> bool:
        known = {weights.data_ptr() for weights in self._weights}  # dropout gives back the same memory in eval mode
        return any(isinstance(value, Tensor) and value.data_ptr() in known for value in args)


def family_of(model: nn.Module, example_input: Batch) -> Family:
    """The family of `model`: "transformer" where anything attends, "recurrent" where a recurrent layer of torch is in it or a
    linear layer runs again and again on `example_input` (shape [1, ...]), else "cnn"; the model ends in eval mode."""
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        return "transformer"
    with _Attending() as attending:
        runs = runs_of_modules(model.eval(), example_input)
    if attending.found:
        return "transformer"
    again = any(runs[name] > 1 for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return "recurrent" if again or any(isinstance(m, nn.RNNBase) for m in model.modules()) else "cnn"
