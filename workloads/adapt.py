"""Adapts a user's workload to the form that slimfront computes with: the bare model in float32, inputs and outputs as batches.

What is changed computes the same; each change is a remark for the workload's owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ..core.batch import Batch, mapped, tensors_of
from .calls import call_with_batches, note_axes
from .copies import copied, kept_tensors, unwrapped, wrappers
from .rewriting.ties import share, tied_layers
from .samples import InputKinds, plain_input, samples
from .workload import SPLITS, Workload, example_result, number_of_classes


def adapted(workload: Workload) -> Workload:
    """`workload`, which was checked, in the form that slimfront reads; its model and data are not changed.

    What it is called with is then a batch, and so is what it returns.
    """
    result = example_result(workload)
    example = mapped(plain_input, workload.example_input)
    model, remarks = plain_model(workload.model)
    if _is_called_otherwise(workload, result):
        model = copied(model) if model is workload.model else model
        call_with_batches(model, workload.example_inputs, result, workload.forward, workload.outputs)
    if workload.dynamic_axes:
        model = copied(model) if model is workload.model else model
        note_axes(model, workload.dynamic_axes)
    if _keeps_tensors(model, example):
        model = copied(model)
        model.register_forward_hook(_Detach())
    if _changes_inputs(model, example):
        model = copied(model)
        model.register_forward_pre_hook(_OwnInputs())
        remarks.append("forward changes its inputs in place: it computes on a copy of them")
    remarks += _remarks_on_types(workload.example_input)
    kinds, classes = InputKinds.of(example), number_of_classes(workload)
    splits = {
        split: samples(split, getattr(workload, split), kinds, classes, workload.reading(split)) for split in SPLITS
    }
    remarks += _shared_data(workload)
    return replace(
        workload,
        model=model,
        example_inputs=example,
        forward=None,
        outputs=(),
        collate=None,
        train_transform=None,
        remarks=tuple(remarks),
        **splits,
    )


def _is_called_otherwise(workload: Workload, result: object) -> bool:
    """Whether the model takes or returns anything but one tensor, or its owner says how it is called."""
    tensors = isinstance(workload.example_inputs, Tensor) and isinstance(result, Tensor)
    return not tensors or workload.forward is not None


def _remarks_on_types(example: Batch) -> list[str]:
    floats = {str(t.dtype) for t in tensors_of(example) if t.is_floating_point() and t.dtype != torch.float32}
    return [f"inputs are {', '.join(sorted(floats))}: they are read as float32"] if floats else []


def plain_model(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model without wrappers and reparametrizations, in float32, and what that changed; itself where nothing had to."""
    plain, remarks = unwrapped(model), []
    if around := wrappers(model):
        remarks.append(f"{', '.join(around)}: the model inside is taken")
    if any(not kept.is_leaf for _, _, kept in kept_tensors(plain)):
        plain = copied(plain)
    for step in (_with_own_weights, _untied, _in_float32):
        plain, remark = step(plain, model)
        remarks += remark
    return plain, remarks


def _changeable(plain: nn.Module, model: nn.Module) -> nn.Module:
    """`plain`, or a copy where it is the user's own `model`."""
    return copied(plain) if plain is model else plain


def _with_own_weights(plain: nn.Module, model: nn.Module) -> tuple[nn.Module, list[str]]:
    """`plain` without masks and parametrizations, and a remark where it had any."""
    names = [name for name, module in plain.named_modules() if _parametrizations(module)]
    if not names:
        return plain, []
    plain = _changeable(plain, model)
    for name in names:
        _compute_once(plain.get_submodule(name))
    remark = (
        f"masks and parametrizations of {', '.join(names)} are computed once: their weights are plain ones from then on, "
        "which recovery changes as any other (zeros of a mask stay only where the policy asks for them)"
    )
    return plain, [remark]


def _untied(plain: nn.Module, model: nn.Module) -> tuple[nn.Module, list[str]]:
    """`plain` with layers of one weight as one that runs for each, and a parameter of its own for whatever else shared one."""
    if not [*_ties(plain)]:
        return plain, []
    plain, remarks = _changeable(plain, model), []
    for paths in [*tied_layers(plain)]:
        share(plain, paths)
        remarks.append(f"{', '.join(paths)} have one weight: it is counted, pruned, quantized and stored once")
    if ties := [*_ties(plain)]:
        paths = {module: path for path, module in plain.named_modules()}
        named = ", ".join(f"{paths[owner]}.{key}" for owner, key, _ in ties)
        added = sum(weight.numel() for _, _, weight in ties)
        before = sum(parameter.numel() for parameter in plain.parameters())
        remarks.append(
            f"{named}: of another layer too; each is a copy of its own from here on, counted and compressed apart, so that the "
            f"uncompressed model counts {before + added:,} parameters instead of {before:,}"
        )
    for owner, key, weight in ties:
        setattr(owner, key, nn.Parameter(weight.detach().clone(), weight.requires_grad))
    return plain, remarks


def _in_float32(plain: nn.Module, model: nn.Module) -> tuple[nn.Module, list[str]]:
    """`plain` in float32, and a remark where it was of another floating-point type."""
    kinds = {str(t.dtype) for t in _tensors(plain) if t.is_floating_point() and t.dtype != torch.float32}
    if not kinds:
        return plain, []
    remark = f"weights are {', '.join(sorted(kinds))}: the model is compressed and measured in float32"
    return _changeable(plain, model).float(), [remark]


class _Detach:
    """A forward hook after which nothing that a model keeps for itself holds a graph: it can be copied then."""

    def __call__(self, model: nn.Module, _inputs: object, _output: object) -> None:
        for place, key, value in kept_tensors(model):
            if not value.is_leaf:
                place[key] = value.detach()


class _OwnInputs:
    """A forward pre-hook that hands a model a copy of its inputs: data, and what a teacher reads too, stay as they are."""

    def __call__(self, _model: nn.Module, inputs: tuple[Batch, ...]) -> tuple[Batch, ...]:
        return tuple(mapped(torch.clone, batch) for batch in inputs)


@torch.no_grad()
def _changes_inputs(model: nn.Module, example: Batch) -> bool:
    """Whether forward writes into its inputs, be it the values that are there already."""
    inputs = mapped(torch.clone, example)
    copied(model).eval()(inputs)
    return any(tensor._version for tensor in tensors_of(inputs))


@torch.no_grad()
def _keeps_tensors(model: nn.Module, example: Batch) -> bool:
    """Whether forward leaves a tensor in an attribute, which has its graph with it where gradients are recorded."""
    probe = copied(model).eval()
    before = [id(kept) for _, _, kept in kept_tensors(probe)]
    probe(mapped(torch.clone, example))
    return before != [id(kept) for _, _, kept in kept_tensors(probe)]


def _ties(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """(module, name, parameter) of each parameter that an earlier module, or name, has already."""
    seen: set[int] = set()
    for module in model.modules():
        for key, parameter in [*module._parameters.items()]:
            if parameter is None:
                continue
            if id(parameter) in seen:
                yield module, key, parameter
            seen.add(id(parameter))


def _parametrizations(module: nn.Module) -> list[str]:
    """Tensors of the module itself that are computed anew from others at each call."""
    return [*_computed(module), *(hook._tensor_name for hook in _masks(module))]


def _computed(module: nn.Module) -> list[str]:
    """Tensors of the module itself that `torch.nn.utils.parametrize` computes."""
    parametrizations = getattr(module, "parametrizations", None)
    return [*parametrizations] if isinstance(parametrizations, nn.ModuleDict) else []


def _masks(module: nn.Module) -> list[prune.BasePruningMethod]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]


def _compute_once(module: nn.Module) -> None:
    for hook in _masks(module):
        prune.remove(module, hook._tensor_name)
    if computed := _computed(module):
        values = {name: getattr(module, name).detach() for name in computed}
        del module.parametrizations
        # Not remove_parametrizations, which changes the class that the copied module and its original share.
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))


def _shared_data(workload: Workload) -> Iterator[str]:
    """Remarks on splits that are one data set, if accuracies are measured on it."""
    names: dict[int, list[str]] = {}
    for split in SPLITS:
        names.setdefault(id(getattr(workload, split)), []).append(split)
    for shared in names.values():
        if len(shared) > 1 and {"validation", "test"}.intersection(shared):
            yield f"{', '.join(shared)} are one data set: accuracies measured on it are not of unseen samples"


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
