"""What kind of network a model is; `presets` holds the choices that fit each."""

from __future__ import annotations

from torch import Tensor, nn

from .channel_graph import HeadedAttention
from .layers import runs_of_modules
from .presets import Family

ATTENTION = (nn.MultiheadAttention, HeadedAttention)


def family_of(model: nn.Module, example_input: Tensor) -> Family:
    """The family of `model`: "transformer" where anything attends, "recurrent" where a recurrent layer of torch is in it or a
    linear layer runs again and again on `example_input` (shape [1, ...]), else "cnn"; the model ends in eval mode."""
    if any(isinstance(module, ATTENTION) for module in model.modules()):
        return "transformer"
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return "recurrent"
    runs = runs_of_modules(model.eval(), example_input)
    again = any(runs[name] > 1 for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return "recurrent" if again else "cnn"
