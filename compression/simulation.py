"""The torch model that an artifact was made from, on the artifact's own grids: what its runtime has to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from ..core.batch import Batch, tensors_of
from ..core.hooks import removed_after
from ..spaces.models.exported_graph import PASSED_ON
from ..spaces.models.layers import WeightedLayer
from ..spaces.policies.candidate import Candidate, QuantParams
from .compress import rounded_model
from .quantization.fake_quantize import on_grid, rounded_activations, with_other_matrices, with_own_matrices

ADDERS = {
    torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__,
}  # fmt: skip
"""What an addition of two tensors is called in torch."""


class Simulation:
    """A candidate in torch: every weight as its artifact stores it, and all that is read on a grid rounded to it.

    Args:
        candidate: is left as it is.
    """

    def __init__(self, candidate: Candidate) -> None:
        self._policy, self._quantization = candidate.policy, candidate.quantization
        self._model = rounded_model(candidate).requires_grad_(False)

    @torch.no_grad()
    def outputs(self, inputs: Batch, noise: float = 0.0) -> Batch:
        """What the artifact has to compute.

        Args:
            inputs: shape [n, ...].
            noise: every number that a module reads or makes is changed at random by at most this share of itself.
        """
        additions = _RoundedAdditions(self._model, self._quantization.additions, inputs)
        rounded = rounded_activations(self._model, self._policy, self._quantization.inputs)
        with rounded, _disturbed(self._model, noise), additions:
            return self._model(inputs)

    @torch.no_grad()
    def unrounded_outputs(self, inputs: Batch) -> Batch:
        """The same without rounding anything but weights."""
        return self._model(inputs)


class _RoundedAdditions(TorchFunctionMode):
    """Rounds the operands of residual additions, which are counted in each module as `residual_additions` counts them.

    Args:
        grids: (module path, index among the additions in that module, operand) -> its grid.
        inputs: of the model; what is added to them is no residual.
    """

    def __init__(self, model: nn.Module, grids: Mapping[tuple[str, int, int], QuantParams], inputs: Batch) -> None:
        super().__init__()
        self._grids, self._modules = grids, dict(model.named_modules())
        self._given = {id(tensor): tensor for tensor in tensors_of(inputs)}
        self._computed = dict[int, Tensor]()  # kept: an address may be used again
        self._paths: list[str] = [""]
        self._seen: Counter[str] = Counter()
        self._hooks: list[Any] = []

    def __enter__(self) -> _RoundedAdditions:
        for path, module in self._modules.items() if self._grids else ():
            enter, leave = self._watch(path)
            self._hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        return super().__enter__() if self._grids else self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._grids:
            super().__exit__(*error)

    def _watch(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(*_: object) -> None:
            self._paths.append(path)

        def leave(*_: object) -> None:
            self._paths.pop()

        return enter, leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "__get__":  # of an attribute, such as a shape
            return func(*args, **(kwargs or {}))
        is_residual = func in ADDERS and len(args) > 1 and all(id(operand) in self._computed for operand in args[:2])
        made = func(*(self._rounded(args) if is_residual else args), **(kwargs or {}))
        self._note(func.__name__, (*args, *(kwargs or {}).values()), made)
        return made

    def _rounded(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        path = self._paths[-1]
        index = self._seen[path]
        self._seen[path] += 1
        grids = [self._grids.get((path, index, operand)) for operand in (0, 1)]
        return (
            *(tensor if grid is None else on_grid(tensor, grid) for tensor, grid in zip(args, grids, strict=False)),
            *args[2:],
        )

    def _note(self, name: str, read: Sequence[Any], made: Any) -> None:
        """Note whether what a function made is computed, or the input passed on."""
        sources = {id(tensor) for tensor in _tensors(read)}
        passes = name in PASSED_ON and not sources.isdisjoint(self._given)
        if passes or not sources.isdisjoint(self._computed) or not sources.isdisjoint(self._given):
            (self._given if passes else self._computed).update({id(tensor): tensor for tensor in _tensors([made])})


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _disturbance(share: float) -> Callable[[Any], Any]:
    """A function that makes each number of a tensor of floats another by at most a share of it; the same ones at every call."""
    chance = torch.Generator().manual_seed(0)

    def disturb(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        factors = torch.empty(value.shape, dtype=value.dtype).uniform_(1 - share, 1 + share, generator=chance)
        return value * factors.to(value.device)

    return disturb


@contextmanager
def _disturbed(model: nn.Module, share: float) -> Iterator[None]:
    """Have every number that a module without parts reads or makes be another by at most a share of it, always the same one.

    Within a recurrent layer, whose states stay out of sight, so are its matrices.
    """
    disturb = _disturbance(share)
    innermost = [module for module in model.modules() if not [*module.children()]] if share else []
    with removed_after([hook for module in innermost for hook in _disturbing(module, disturb)]):
        yield


def _disturbing(module: nn.Module, disturb: Callable[[Any], Any]) -> Iterator[RemovableHandle]:
    def before(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(disturb, inputs))

    def after(_module: nn.Module, _inputs: object, made: Any) -> Any:
        return tree_map(disturb, made)

    if isinstance(module, nn.RNNBase):
        yield module.register_forward_pre_hook(with_other_matrices(disturb))
        yield module.register_forward_hook(with_own_matrices)
    if isinstance(module, (*get_args(WeightedLayer), nn.RNNBase)):
        yield module.register_forward_pre_hook(before, prepend=True)
    yield module.register_forward_hook(after)
