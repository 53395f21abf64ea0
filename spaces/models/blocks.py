"""Blocks that may be removed whole: what they make has the shape of what they read first, so that nothing else notices.

Removing blocks makes a network shallower, which latency follows more closely than it follows FLOPs (Elkerdawy et al. 2020,
arXiv:2011.14356; of transformers: Men et al. 2024, arXiv:2403.03853).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.batch import Batch
from ...core.hooks import removed_after
from ...core.interrupts import raise_if_interrupted
from ..policies.resolved import is_within
from .attributes import restored
from .failures import first_line
from .layers import LAYER_KINDS
from .unread import output_tensors

CONTAINERS = (nn.Sequential, nn.ModuleList)


class RemovedBlock(nn.Module):
    """Stands for a block that was removed: the identity of the first argument, by position or by name."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return first_argument(inputs, named)


def first_argument(inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What a module is called on: its first positional argument or else its first named one; None without any."""
    return next(iter([*inputs, *named.values()]), None)


def find_removable_blocks(model: nn.Module, example_input: Batch) -> list[str]:
    """Paths of the blocks of `model` that an identity may stand for, in module order; the model ends in eval mode."""
    return examine_blocks(model, example_input)[0]


@torch.no_grad()
def examine_blocks(model: nn.Module, example_input: Batch) -> tuple[list[str], dict[str, str]]:
    """Paths of the blocks of `model` that an identity may stand for, in module order, and why none may for the others.

    A block is an element of a sequence or list of modules, no sequence itself, that holds at least two layers; it may go if it runs
    once and maps its first argument to a tensor of the same shape, whatever else it reads, such as a mask. Of nested ones the
    outermost is named. Removing it is proven to equal passing on what it reads. The model ends in eval mode.
    """
    reasons = _reasons(model, example_input)
    found: list[str] = []
    fixed: dict[str, str] = {}
    for name, module in model.named_modules():
        if module not in reasons or is_within(name, found):
            continue
        if reason := reasons[module]:
            fixed[name] = reason
        else:
            found.append(name)
    refuted = _refuted(model, example_input, found)
    return [name for name in found if name not in refuted], fixed | refuted


def _refuted(model: nn.Module, example_input: Batch, names: Sequence[str]) -> dict[str, str]:
    """{block: reason} of those without which the model does not compute what it does where each passes on what it reads."""
    if not names or (reason := _why_not_without(model, example_input, names)) is None:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    middle = len(names) // 2
    refuted = {
        **_refuted(model, example_input, names[:middle]),
        **_refuted(model, example_input, names[middle:]),
    }
    return refuted or dict.fromkeys(names, f"not together with others: {reason}")


def _why_not_without(model: nn.Module, example_input: Batch, names: Sequence[str]) -> str | None:
    with _passing_on([model.get_submodule(name) for name in names]):
        expected = output_tensors(model, example_input)
    with restored(model.modules()):
        for name in names:
            model.set_submodule(name, RemovedBlock())
        try:
            found = output_tensors(model, example_input)
        except Exception as error:  # the model's own code may raise anything
            raise_if_interrupted(error)
            return f"without it forward fails: {first_line(error)}"
    return None if all(map(_is_same, expected, found)) else "forward reads more of it than it returns"


def _is_same(expected: Tensor, found: Tensor) -> bool:
    return expected.shape == found.shape and torch.allclose(expected, found, equal_nan=True)


@contextmanager
def _passing_on(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Have blocks run and yet return what they read first, which they may have changed in place."""
    read: dict[nn.Module, Any] = {}

    def keep(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        read[block] = first_argument(inputs, named).clone()

    hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(lambda block, _inputs, _made: read.pop(block)) for block in blocks]
    with removed_after(hooks):
        yield


def _reasons(model: nn.Module, example_input: Batch) -> dict[nn.Module, str | None]:
    """Block -> why no identity may stand for it, or None, from a pass of the model."""
    reasons: dict[nn.Module, str | None] = dict.fromkeys(_blocks(model), "it is never called")
    calls: Counter[nn.Module] = Counter()

    def watch(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        calls[module] += 1
        read = first_argument(inputs, named)
        reasons[module] = _why_fixed(read, output) if calls[module] == 1 else "it runs more than once in a pass"

    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in reasons]
    with removed_after(hooks):
        model.eval()(example_input)
    return reasons


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Elements of sequences and lists of modules that hold at least two layers and are not sequences themselves."""
    for container in model.modules():
        for module in container.children() if isinstance(container, CONTAINERS) else ():
            if not isinstance(module, CONTAINERS) and sum(type(part) in LAYER_KINDS for part in module.modules()) > 1:
                yield module


def _why_fixed(read: Any, made: Any) -> str | None:
    """Why no identity of `read`, a block's first argument, may stand for what makes `made`."""
    if not isinstance(read, Tensor) or not isinstance(made, Tensor):
        return "it does not map one tensor to one tensor"
    before, after = list(read.shape), list(made.shape)
    return None if before == after else f"it maps {before} to {after}"


@torch.no_grad()
def block_influence(model: nn.Module, batches: Iterable[Batch], blocks: Sequence[str]) -> dict[str, float]:
    """Block -> 1 - the mean cosine of what it reads and what it makes: near 0 where it changes nothing (block influence of
    Men et al. 2024, ShortGPT, arXiv:2403.03853, equation 1). The model ends in eval mode.

    Args:
        batches: inputs of the model, shape [batch, ...].
        blocks: as `find_removable_blocks` finds them. Cosines are of tokens where tensors are [batch, tokens, width], else
            of whole samples.
    """
    cosines: dict[str, list[Tensor]] = {name: [] for name in blocks}

    def watch(name: str):
        def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            read, made = (t if t.ndim == 3 else t.flatten(1) for t in (first_argument(inputs, named), output))
            cosines[name].append(functional.cosine_similarity(read, made, dim=-1).flatten())

        return model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    hooks = [watch(name) for name in blocks]
    with removed_after(hooks):
        for batch in batches:
            model.eval()(batch)
    return {name: 1 - float(torch.cat(found).mean()) for name, found in cosines.items()}


def least_influential_first(influence: dict[str, float]) -> list[str]:
    """The blocks in the order in which depth is taken away; equal ones from the back of the model."""
    order = {name: index for index, name in enumerate(influence)}
    return sorted(influence, key=lambda name: (influence[name], -order[name]))
