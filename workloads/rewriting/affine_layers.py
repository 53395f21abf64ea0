"""Modules that compute what a linear layer does, whatever their class: transposed weights, as of GPT-2's `Conv1D`, and low-rank
adapters (LoRA, Hu et al. 2021, arXiv:2106.09685), merged or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention import linear_of

TOLERANCE = 1e-4
"""The largest difference, relative to the largest output, between two computations of the same that rounding may cause."""

LOUD = 100.0
"""The standard deviation of the random inputs, large enough to reveal a module that clips or rounds."""

WIDEST = 8192
"""The most inputs of a module whose matrix is read off: each is a row of a batch."""


def affine_candidates(model: nn.Module) -> Iterator[str]:
    """Paths of modules of a class that is not torch's, with one matrix of their own or of a linear layer inside that has most of their weights,
    which no other module has."""
    owners = Counter(id(parameter) for _, parameter in _owned(model))
    for name, module in model.named_modules():
        torch_own = type(module).__module__.startswith("torch.nn") or isinstance(
            module, nn.Conv1d | nn.Conv2d | nn.Conv3d
        )
        if any(owners[id(parameter)] > 1 for parameter in module.parameters()):
            continue
        if name and not torch_own and _largest_matrix(module) * 2 > sum(own.numel() for own in module.parameters()) > 0:
            yield name


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(path, parameter) of each module, as often as a module is held or a parameter owned."""
    for path, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{key}", parameter


def _largest_matrix(module: nn.Module) -> int:
    """Elements of the largest matrix that the module, or a linear layer in it, has; 0 where anything in it is no matrix."""
    inside = _weighted_parts(module)
    own = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1]
    matrices = own + [part.weight for part in inside if isinstance(part, nn.Linear)]
    if len(matrices) < len(own) + len(inside) or any(matrix.ndim > 2 for matrix in matrices):
        return 0
    return max((matrix.numel() for matrix in matrices), default=0)


def _weighted_parts(module: nn.Module) -> list[nn.Module]:
    """The modules inside a module that have parameters of their own."""
    return [part for part in module.modules() if part is not module and [*part.parameters(recurse=False)]]


@torch.no_grad()
def as_linear(module: nn.Module, read: Tensor) -> nn.Linear | None:
    """A linear layer that computes what `module` does, in evaluation mode, of what it read and of random numbers; None where none does."""
    if not _may_be_linear(read):
        return None
    loud = torch.randn(read.shape, generator=torch.Generator().manual_seed(0)).to(read) * LOUD
    try:
        matrix = _matrix(module, read)
        expected = [module(tensor) for tensor in (read, loud)]
    except Exception:  # the module may take nothing but what it is given, or more than one tensor
        return None
    if matrix is None:
        return None
    weight, bias = (_exact(module, values) for values in matrix)
    found = [functional.linear(tensor, weight, bias) for tensor in (read, loud)]
    if not all(map(_close, expected, found)):
        return None
    return linear_of(weight, bias if bool(bias.any()) else None)


def _may_be_linear(read: Tensor) -> bool:
    return read.ndim > 1 and read.shape[-1] <= WIDEST and read.is_floating_point()


def _matrix(module: nn.Module, read: Tensor) -> tuple[Tensor, Tensor] | None:
    """The weight, shape [outputs, inputs], and bias, shape [outputs], that a module has if it is linear, read off from what it makes of
    zeros and of each unit vector; None where the shapes are not those of a linear layer."""
    width = read.shape[-1]
    shape = (*[1] * (read.ndim - 2), width)
    bias = module(read.new_zeros(1, *shape))
    matrix = module(torch.eye(width).to(read).view(width, *shape)) - bias
    if matrix.shape != (width, *shape[:-1], matrix.shape[-1]) or bias.shape[-1] != matrix.shape[-1]:
        return None
    return matrix.reshape(width, -1).T.contiguous(), bias.flatten()


def _exact(module: nn.Module, values: Tensor) -> Tensor:
    """The parameter of the module that holds these numbers, without the rounding of how they were read off; else the numbers."""
    for parameter in module.parameters():
        for own in (parameter, parameter.T) if parameter.ndim == 2 else (parameter,):
            if own.shape == values.shape and _close(own, values):
                return own.detach().clone(memory_format=torch.contiguous_format)
    return values


def _close(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first - second).abs().max() <= TOLERANCE * first.abs().max())
