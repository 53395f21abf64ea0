"""How a user's model is called with a batch, its result read, and which axes of its inputs may have other sizes than in the example.
All of that is set on the model itself, so that its layers keep their names.

With them `model(batch)` is the call for every model, through copies, pickles, tracing and export.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.batch import INPUT, OUTPUT, Batch, by_name, from_names
from ..core.errors import WorkloadError

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a user's model is called with: `model(x)`, `model(*xs)` or `model(**xs)`."""

DynamicAxes = Mapping[str, Mapping[int, str]]
"""Input -> axis -> name of its size; a model's only input is called "input". Axes of one name have one size."""

_NOTED = "_slimfront_dynamic_axes"

Forward = Callable[[Any, Any], Any]
"""(model, inputs as the data set gives them) -> outputs, for a model that is called in another way."""


def names_of_inputs(model: nn.Module, inputs: Any) -> tuple[str, ...] | None:
    """The names of several inputs: keys, or what the model's forward calls its positions; None for one tensor."""
    if isinstance(inputs, Mapping):
        return tuple(inputs)
    return tuple(_positions(model, len(inputs))) if isinstance(inputs, (tuple, list)) else None


def _positions(model: nn.Module, count: int) -> Iterator[str]:
    kinds = inspect.Parameter
    parameters = [*inspect.signature(model.forward).parameters.values()]
    named = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    yield from named[:count]
    yield from (f"input{index}" for index in range(len(named[:count]), count))


def batch_of(inputs: Any, names: Sequence[str] | None) -> Any:
    """A user's inputs as a batch: the tensor itself, or a dictionary in the order of `names`.

    Raises:
        ValueError: there are others than `names`.
    """
    if names is None:
        return inputs
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise ValueError(f"must hold {', '.join(names)}, not {', '.join(map(str, inputs)) or 'nothing'}")
        return {name: inputs[name] for name in names}
    if not isinstance(inputs, (tuple, list)) or len(inputs) != len(names):
        count = f" of {len(inputs)}" if isinstance(inputs, (tuple, list)) else ""
        raise ValueError(f"must be {len(names)} inputs ({', '.join(names)}), not {type(inputs).__name__}{count}")
    return dict(zip(names, inputs, strict=True))


def called(model: nn.Module, inputs: Any, forward: Forward | None) -> Any:
    """What a model returns of inputs as the data set gives them, or of a batch where it is called with batches already."""
    if _forward_of(model) is not None:
        return model(inputs)
    if forward is not None:
        return forward(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def call_with_batches(
    model: nn.Module, inputs: Any, result: Any, forward: Forward | None = None, wanted: Sequence[str] = ()
) -> None:
    """Have `model(batch)` be the call of the user's model, in place; one that takes and returns one tensor stays as it is.

    Args:
        inputs: an example of what the user calls it with, `batch_of` which batches are.
        result: what the model returned of it.
        forward: how the user calls it, where that is neither `model(x)`, `model(*xs)` nor `model(**xs)`.
        wanted: names of the outputs to keep; all where there are none.
    """
    outputs = _Outputs(tuple(wanted), [name or OUTPUT for name in named_outputs(result, wanted)])
    if forward is not None or names_of_inputs(model, inputs) is not None:
        model.forward = _Forward(model, forward, isinstance(inputs, (tuple, list)), outputs).forward
    elif not isinstance(result, Tensor):
        model.register_forward_hook(outputs)


def names_of_outputs(model: nn.Module) -> list[str]:
    """What artifacts call the outputs of a model that is called with batches."""
    own = _forward_of(model)
    found = [own.outputs] if own is not None else [*model._forward_hooks.values()]
    return next((each.names for each in found if isinstance(each, _Outputs)), [OUTPUT])


def _forward_of(model: nn.Module) -> _Forward | None:
    own = getattr(vars(model).get("forward"), "__self__", None)
    return own if isinstance(own, _Forward) else None


class _Outputs:
    """A forward hook that makes what a model returns a batch; see `picked`.

    Attributes:
        wanted: names of the outputs to keep; all where there are none.
        names: of those that are kept, in order.
    """

    def __init__(self, wanted: tuple[str, ...], names: list[str]) -> None:
        self.wanted, self.names = wanted, names

    @property
    def call_key(self) -> tuple[Any, ...]:
        """Equal for what makes the same of a model's result."""
        return self.wanted, *self.names

    def __call__(self, _module: nn.Module, _inputs: object, result: Any) -> Batch:
        return picked(result, self.wanted)


class _Forward:
    """The forward of a model that is called with batches: spreads them, or calls the model as its owner does.

    The model is referred to weakly, so that it is freed as soon as nobody else refers to it.

    Attributes:
        outputs: makes what the model returns a batch.
    """

    def __init__(self, model: nn.Module | None, own: Forward | None, by_position: bool, outputs: _Outputs) -> None:
        self._model = None if model is None else weakref.ref(model)
        self._own, self._by_position, self.outputs = own, by_position, outputs
        self._is_inside = False

    @property
    def call_key(self) -> tuple[Any, ...]:
        """Equal for what calls a model in the same way."""
        return id(self._own) if self._own is not None else None, self._by_position, self.outputs.call_key

    def forward(self, *args: Any, **options: Any) -> Any:
        model = self._owner()
        assert model is not None, "the model calls this, and is alive"
        if self._is_inside:  # the owner's function calls the model itself
            return type(model).forward(model, *args, **options)
        self._is_inside = True
        try:
            given = tuple(args[0].values()) if self._by_position else args[0]
            return picked(self._result(model, given), self.outputs.wanted)
        finally:
            self._is_inside = False

    def _result(self, model: nn.Module, given: Any) -> Any:
        if self._own is not None:
            return self._own(model, given)
        return type(model).forward(model, *given) if self._by_position else type(model).forward(model, **given)

    def _owner(self) -> nn.Module | None:
        return None if self._model is None else self._model()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        model = self._owner()
        return type(self)(memo.get(id(model), model), self._own, self._by_position, copy.copy(self.outputs))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._owner(), self._own, self._by_position, self.outputs)


def picked(result: Any, wanted: Sequence[str]) -> Batch:
    """What a model returned as a batch: its tensors by name, or the tensor itself where there is one; see `named_outputs`."""
    kept = named_outputs(result, wanted)
    return next(iter(kept.values())) if len(kept) == 1 else kept


def named_outputs(result: Any, wanted: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of what a model returned, by name.

    Args:
        wanted: the names to keep, each of a tensor or of what holds some; all where there are none.

    Raises:
        WorkloadError: there is no such output.
    """
    found = dict(leaves(result))
    if not found:
        raise WorkloadError(
            f"outputs: the model returns no tensor, but {type(result).__name__}; there must be a tensor"
        )
    if not wanted:
        return found
    kept = set().union(*(_at(name, found) for name in wanted))
    return {name: tensor for name, tensor in found.items() if name in kept}


def _at(name: str, found: Collection[str]) -> set[str]:
    """The tensors, by their names, that one name stands for: its own, or those that what it names holds."""
    at = {leaf for leaf in found if leaf == name or leaf.startswith(f"{name}.")}
    if not at:
        known = ", ".join(leaf or "one tensor" for leaf in found)
        raise WorkloadError(f"outputs: the model returns {known}; {name} is not among them")
    return at


def leaves(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything in a result: keys and fields joined by dots, positions as "output0" or by number.

    What is no tensor, such as None, is left out.
    """
    if isinstance(result, Tensor):
        yield name, result
    for key, part in _parts(result):
        own = key if isinstance(key, str) else f"{key}" if name else f"{OUTPUT}{key}"
        yield from leaves(part, f"{name}.{own}" if name else own)


def _parts(result: Any) -> Iterator[tuple[str | int, Any]]:
    """(key, field or position, value) of what holds values."""
    if isinstance(result, Mapping):
        yield from ((str(key), value) for key, value in result.items())
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        yield from zip(result._fields, result, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(result, (tuple, list)):
        yield from enumerate(result)
    elif dataclasses.is_dataclass(result):
        yield from ((field.name, getattr(result, field.name)) for field in dataclasses.fields(result))


# Dynamic axes


def axes_problem(axes: object, example: Batch) -> str | None:
    """What is wrong with the axes that a workload declares, to follow "dynamic_axes"; None where nothing is."""
    inputs = by_name(example, INPUT)
    if not isinstance(axes, Mapping):
        return f"must be a dictionary such as {{{next(iter(inputs))!r}: {{1: 'length'}}}}, not {axes!r}"
    sizes: dict[str, int] = {}
    for name, named in axes.items():
        if name not in inputs:
            return f"names {name!r}, and the model's inputs are {', '.join(inputs)}"
        if not isinstance(named, Mapping):
            return f"[{name!r}] must be a dictionary such as {{1: 'length'}}, not {named!r}"
        for axis, word in named.items():
            if (problem := _axis_problem(inputs[name], axis, word)) is not None:
                return f"[{name!r}] {problem}"
            size = inputs[name].shape[axis]
            if sizes.setdefault(word, size) != size:
                return f"[{name!r}] has {size} for {word!r}, and another input of the example has {sizes[word]}"
    return None


def _axis_problem(tensor: Tensor, axis: object, word: object) -> str | None:
    if not isinstance(axis, int) or isinstance(axis, bool) or not 1 <= axis < tensor.ndim:
        return f"must name axes from 1 to {tensor.ndim - 1} (axis 0 counts the samples), not {axis!r}"
    if not isinstance(word, str) or not word.isidentifier():
        return f"must give axis {axis} a name such as 'length', not {word!r}"
    if word == "weight":
        return f"must give axis {axis} another name: 'weight' is what a study's `shapes` give their weights by"
    return None


def note_axes(model: nn.Module, axes: DynamicAxes) -> None:
    """Note the axes on a model, in place."""
    setattr(model, _NOTED, {name: dict(named) for name, named in axes.items() if named})


def axes_of(model: nn.Module) -> dict[str, dict[int, str]]:
    """The axes that were noted on a model; none where none were."""
    return getattr(model, _NOTED, {})


def sizes_of(axes: DynamicAxes, inputs: Batch) -> dict[str, int]:
    """Name of an axis -> its size in a batch."""
    named = by_name(inputs, INPUT)
    return {word: named[name].shape[axis] for name, of_input in axes.items() for axis, word in of_input.items()}


def resized(inputs: Batch, axes: DynamicAxes, sizes: Mapping[str, int]) -> Batch:
    """A batch with its dynamic axes at other sizes: cut off, or continued from their beginning."""
    named = dict(by_name(inputs, INPUT))
    for name, of_input in axes.items():
        for axis, word in of_input.items():
            places = torch.arange(sizes[word], device=named[name].device) % named[name].shape[axis]
            named[name] = named[name].index_select(axis, places)
    return from_names(named, INPUT)


@torch.no_grad()
def output_axes(model: nn.Module, example: Batch) -> tuple[dict[str, dict[int, str]], dict[str, int]]:
    """Output -> axis -> name of its size, of the axes whose size follows a dynamic one's; and the sizes of all names in the example.

    The model is run at another size of each.
    """
    axes, names, found = axes_of(model), names_of_outputs(model), dict[str, dict[int, str]]()
    inputs = sizes_of(axes, example)
    sizes, before = dict(inputs), _shapes(model(example), names)
    for word, size in inputs.items():
        other = max(1, size // 2) if size > 1 else 2
        after = _shapes(model(resized(example, axes, {**inputs, word: other})), names)
        for name in names:
            for axis, (first, second) in enumerate(zip(before[name], after[name], strict=True)):
                if first != second:
                    called = word if first == size else f"{name}_{axis}"
                    found.setdefault(name, {})[axis] = called
                    sizes.setdefault(called, first)
    return found, sizes


def _shapes(outputs: Batch, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in zip(names, by_name(outputs, OUTPUT).values(), strict=True)}
