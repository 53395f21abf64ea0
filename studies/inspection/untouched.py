"""Why a policy leaves a weight alone, in words for the model's owner: what stays as it is, why, and what could be changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ...core.batch import Batch
from ...spaces.models.embeddings import tables_of, why_no_table
from ...spaces.models.layers import LAYER_KINDS, runs_of_modules
from ...spaces.models.recurrent import is_single_layer
from ...spaces.models.unread import ELSEWHERE, UNREAD, read_elsewhere, unread_layers
from ...workloads.plain_layers import base_of, inputs_of, why_not_plain

PARAMETRIZED = ".parametrizations."
"""The part of a path that marks the modules that `torch.nn.utils.parametrize` adds to a layer."""

NEVER_CALLED = "it is never called as a layer"

ATTENTION = (
    "an attention whose weights are read too, that has a mask for each head, inputs without an axis of samples, or keys of its own "
    "(add_bias_kv, add_zero_attn) has no layers that could be compressed"
)

TRANSPOSED = (
    "stays in float: ONNX Runtime has no kernel for it on integers, and OpenVINO's takes only inputs whose grid has its zero at integer 0, "
    "which policies do not choose; it loses channels only together with other layers"
)


def why_untouched(model: nn.Module, example_input: Batch) -> dict[str, str]:
    """Every module with a matrix or kernel of its own that `spaces.models.layers.find_every_layer` leaves out -> the reason, in module order.

    The model itself goes under its class. It ends in eval mode.
    """
    runs = runs_of_modules(model.eval(), example_input)
    known = _why_derived(model, example_input, runs) | why_no_table(model, example_input)
    known |= _why_plain(model, example_input, runs)
    # What computes a parametrization is reported of the layer itself.
    modules = [(name, module) for name, module in model.named_modules() if PARAMETRIZED not in f".{name}."]
    found = {name: known.get(name) or _why_untouched(module, runs[name]) for name, module in modules}
    return {name or type(model).__name__: reason for name, reason in found.items() if reason}


def _why_plain(model: nn.Module, example_input: Batch, runs: Mapping[str, int]) -> dict[str, str]:
    """Layer of a kind that is compressed -> why this one is not, although it is called."""
    tables = set(tables_of(model))
    own = [name for name, module in model.named_modules() if type(module) in LAYER_KINDS or name in tables]
    plain = [name for name in own if runs[name]]
    elsewhere = dict.fromkeys(read_elsewhere(model, example_input, plain), ELSEWHERE)
    elsewhere |= {name: NEVER_CALLED for name in tables if not runs[name]}
    return elsewhere | dict.fromkeys(unread_layers(model, example_input, plain), UNREAD)


def _why_derived(model: nn.Module, example_input: Batch, runs: Mapping[str, int]) -> dict[str, str]:
    """Layer of a subclass of nn.Linear or of a convolution -> why it is not treated as its base class."""
    derived = {name: (module, base) for name, module in model.named_modules() if (base := base_of(module))}
    read = inputs_of(model, example_input, set(derived)) if derived else {}
    reasons = {}
    for name, (module, base) in derived.items():
        if name in read:
            same = f"{type(module).__name__} computes what nn.{base.__name__} does, but the model reads more of it than that has"
            reasons[name] = why_not_plain(module, read[name]) or same
        else:
            reasons[name] = "it is called with more than one tensor" if runs[name] else NEVER_CALLED
    return reasons


def _why_untouched(module: nn.Module, runs: int) -> str | None:
    owned = _matrices(module)
    if not owned:
        return None
    kind = type(module).__name__
    if type(module) in LAYER_KINDS or is_single_layer(module) or isinstance(module, nn.Embedding):
        return None if runs else NEVER_CALLED
    if isinstance(module, nn.RNNBase):
        return f"nn.{kind} with proj_size: its units and its states have different numbers, and only layers without it are compressed"
    if isinstance(module, nn.RNNCellBase):
        return f"an nn.{kind} is one step of a loop in forward; nn.{kind.removesuffix('Cell')} runs all steps and is compressed"
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    if isinstance(module, _ConvTransposeNd):
        return f"nn.{kind} {TRANSPOSED}"
    return f"{', '.join(owned)} of {kind}: only convolutions (Conv1d to Conv3d), linear layers and embeddings are compressed"


def _matrices(module: nn.Module) -> list[str]:
    """The names of the parameters of its own that are more than a number per channel."""
    return [key for key, weight in module.named_parameters(recurse=False) if _dimensions(weight) > 1]


def _dimensions(weight: Tensor) -> int:
    """The number of dimensions with more than one element: a scale per channel has one, whatever its shape."""
    return sum(size > 1 for size in weight.shape)
