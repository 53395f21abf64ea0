"""Replaces subclasses of convolutions and linear layers by their base class, and other modules by linear layers, where both compute the same.

Libraries derive from `nn.Linear` and `nn.Conv2d` for the sake of scripting or padding; what is such a layer is decided by what
it computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..core.batch import Batch, largest_difference
from ..core.hooks import removed_after
from .rewriting.affine_layers import affine_candidates, as_linear

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""The layers of `spaces.models.layers.LAYER_KINDS`."""

TOLERANCE = 1e-4
"""The largest difference, relative to the largest output, between two computations of the same that rounding may cause."""

HOW_TO_UNPARAMETRIZE = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes it a plain layer"

LOUD = 100.0
"""The standard deviation of the random inputs, large enough to reveal a subclass that clips or rounds."""


def plain_layers(model: nn.Module, example_input: Batch) -> nn.Module:
    """A copy of `model` whose layers of a subclass have the base class where they compute the same, and with linear layers for modules
    of any class that compute what one does; the model itself where there are none, or where the copy does not run.

    Args:
        example_input: shape [1, ...]; each layer is compared on its inputs, and on random numbers.
    """
    derived = {name for name, module in model.named_modules() if base_of(module)}
    affine = {*affine_candidates(model)}
    if not derived | affine:
        return model
    inputs = inputs_of(model, example_input, derived | affine)
    plain = copy.deepcopy(model)
    same = _made_plain(plain, {name: inputs[name] for name in inputs.keys() & derived})
    linear = _made_linear(plain, {name: inputs[name] for name in inputs.keys() & affine - {*same}})
    return plain if (same or linear) and _computes_the_same(model, plain, example_input) else model


def _made_plain(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
    """Give layers of a subclass their base class where they compute the same; their paths."""
    same = [name for name, read in inputs.items() if why_not_plain(model.get_submodule(name), read) is None]
    for name in same:
        layer = model.get_submodule(name)
        if (base := base_of(layer)) is not None:
            layer.__class__ = base
    return same


def _made_linear(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
    """Replace modules by the linear layers that compute the same, the outermost of nested ones; their paths."""
    made: list[str] = []
    for name, read in sorted(inputs.items()):
        inside = any(name.startswith(f"{outer}.") for outer in made)
        if not inside and (layer := as_linear(model.get_submodule(name), read)) is not None:
            model.set_submodule(name, layer)
            made.append(name)
    return made


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """The kind of layer that a module's class derives from; None for such a layer itself, and for anything else."""
    if type(module) in LAYERS:
        return None
    return next((kind for kind in LAYERS if isinstance(module, kind)), None)


@torch.no_grad()
def inputs_of(model: nn.Module, example_input: Batch, names: set[str]) -> dict[str, Tensor]:
    """The last inputs of the modules in `names` that are called with one tensor; the model ends in eval mode."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_module: nn.Module, args: tuple, options: dict) -> None:
            if len(args) == 1 and not options and isinstance(args[0], Tensor):
                found[name] = args[0].detach().clone()

        return model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [watch(name) for name in sorted(names)]
    with removed_after(hooks):
        model.eval()(example_input)
    return found


def why_not_plain(module: nn.Module, read: Tensor) -> str | None:
    """Why a layer of a subclass cannot be replaced by its base class, or None where it can.

    It must own a weight and a bias at most, and compute the same in evaluation and training, of `read` and of random numbers.
    """
    base = base_of(module)
    assert base is not None
    kind, parent = type(module).__name__, base.__name__
    if is_parametrized(module):
        return f"its weight is computed from other parameters in every pass ({kind}); {HOW_TO_UNPARAMETRIZE}"
    if more := _owned(module) - {"weight", "bias"}:
        return f"{kind} has more than the weight and bias of nn.{parent}: {', '.join(sorted(more))}"
    loud = torch.randn(read.shape, generator=torch.Generator().manual_seed(0)).to(read) * LOUD
    if not all(_same(module, base, tensor) for tensor in (read, loud)):
        return f"{kind} computes something else than its base class nn.{parent}, which could be compressed"
    return None


def _owned(module: nn.Module) -> set[str]:
    parts: tuple[Mapping[str, object], ...] = (module._parameters, module._buffers, module._modules)
    return {name for part in parts for name, value in part.items() if value is not None}


@torch.no_grad()
def _same(module: nn.Module, base: type[nn.Module], read: Tensor) -> bool:
    """Whether a module and its base class compute the same from a tensor, in both modes."""
    for training in (False, True):
        with _in_mode(module, training), torch.random.fork_rng():
            try:
                own, plain = module.forward(read), base.forward(module, read)
            except Exception:  # the subclass may refuse numbers that its base class takes
                return False
        if not _close(own, plain):
            return False
    return True


@contextmanager
def _in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before


@torch.no_grad()
def _computes_the_same(model: nn.Module, plain: nn.Module, example_input: Batch) -> bool:
    expected: Batch = model.eval()(example_input)
    try:
        return largest_difference(expected, plain.eval()(example_input)) <= TOLERANCE
    except Exception:  # the model's code may read more of a layer than its base class has
        return False


def _close(first: object, second: object) -> bool:
    if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape):
        return False
    return bool((first - second).abs().max() <= TOLERANCE * first.abs().max())
