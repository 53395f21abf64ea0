"""The embeddings whose tables a policy may store in fewer bits, and why others stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...core.batch import Batch, tensors_of
from .attributes import restored

EMBEDDING_KIND = "embedding"

CONSTANT_IDS = (
    "what it looks up does not depend on the model's input: runtimes read those rows once, when they load a file"
)

SMALL = "it holds less than a hundredth of the model's parameters"

LEAST_SHARE = 0.01
"""The least share of a model's parameters that a table holds which is worth a decision."""

MADE_OF_SHAPES = (
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
)
"""Operations that read no more of a tensor than its shape and type."""


def tables_of(model: nn.Module) -> list[str]:
    """Paths of the embeddings that have a table of their own and only look rows up in it, in module order."""
    return [name for name, reason in embeddings_of(model).items() if reason is None]


def why_no_table(model: nn.Module, example_input: Batch) -> dict[str, str]:
    """Embedding -> why no policy decides on its table, of those for which what they are or are given says so."""
    reasons = {name: reason for name, reason in embeddings_of(model).items() if reason is not None}
    tables, size = tables_of(model), sum(parameter.numel() for parameter in model.parameters())
    small = [name for name in tables if _table(model, name).numel() < LEAST_SHARE * size]
    constant = _constant_lookups(model, example_input, tables)
    return {**dict.fromkeys(constant, CONSTANT_IDS), **dict.fromkeys(small, SMALL), **reasons}


def _constant_lookups(model: nn.Module, example_input: Batch, names: Sequence[str]) -> set[str]:
    """Those of the embeddings in `names` that look the same rows up whatever the input; the model is in eval mode and left as it is."""
    if not names:
        return set()
    lookups = _Lookups({id(_table(model, name)): name for name in names}, example_input)
    with torch.no_grad(), restored(model.modules()), lookups:
        model(example_input)
    return set(names) - lookups.found


def _table(model: nn.Module, name: str) -> Tensor:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Embedding)
    return module.weight


def embeddings_of(model: nn.Module) -> dict[str, str | None]:
    """Every module that looks rows up -> why its table is left alone whatever it is given, or None."""
    owners = Counter(id(own) for module in model.modules() for own in module.parameters(recurse=False))
    return {
        name: _why_not(module, owners[id(module.weight)] > 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }


def _why_not(module: nn.Embedding | nn.EmbeddingBag, is_tied: bool) -> str | None:
    if isinstance(module, nn.EmbeddingBag):
        return "an nn.EmbeddingBag sums the rows it looks up in one operation, which reads floats only"
    if type(module).forward is not nn.Embedding.forward:
        return f"{type(module).__name__} does more than nn.Embedding, which only looks rows up"
    if module.max_norm is not None:
        return "max_norm rescales its rows while it looks them up"
    return "its weight is that of another layer too, which would go on with floats" if is_tied else None


class _Lookups(TorchDispatchMode):
    """Notes which tables are read at numbers that follow from the values of the model's input.

    Attributes:
        found: names of such tables.
    """

    def __init__(self, tables: Mapping[int, str], inputs: Batch) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._tables = tables
        self._following = {id(tensor): tensor for tensor in tensors_of(inputs)}  # kept: an address may be used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(id(leaf) in self._following for leaf in tree_leaves((args, kwargs))):
            self._follow(func, args, made)
        return made

    def _follow(self, func: Any, args: Sequence[Any], made: Any) -> None:
        """Note what an operation that reads something of the input's values makes, and the table that it looks up."""
        if func is torch.ops.aten.embedding.default and (name := self._tables.get(id(args[0]))):
            self.found.add(name)
        if func.__name__.partition(".")[0] not in MADE_OF_SHAPES:
            self._following |= {id(leaf): leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)}
