"""Which channels that layers make influence which channels that layers read, measured by derivatives.

Every layer of a model gives random numbers in place of its output, from which derivatives are taken up to the next layers' inputs. Nothing
is assumed about the operations between: views, products, gates and softmax are followed as they compute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ....core.batch import Batch
from ....core.hooks import removed_after
from ..attributes import restored

PARTS = (nn.Linear, _ConvNd, nn.Embedding, _BatchNorm)
"""The modules between which influence is measured."""

Numbers = dict[str, set[int]]
"""Path of a part -> numbers of some of its channels."""

PRODUCT = "BmmBackward"
"""The beginning of the name of the derivative of a product of two computed matrices, which every attention has."""


class Influence:
    """Derivatives from what the parts of a model make to what they read.

    Args:
        model: in eval mode; left as it is.
        example_input: shape [1, ...].

    Attributes:
        made: part -> what stands for its output, one tensor for each run.
        read: part -> its input, one tensor for each run, as computed from `made` and parameters outside the parts.
        sources: part that reads -> parts whose outputs reach its input.
        parameters: part that reads -> names of parameters outside parts that reach its input.
        mixes: parts whose input a product of computed matrices reaches.
        called: paths of the modules that are called.
    """

    def __init__(self, model: nn.Module, example_input: Batch) -> None:
        self.parts = {name: module for name, module in model.named_modules() if isinstance(module, PARTS)}
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.made: dict[str, list[Tensor]] = defaultdict(list)
        self.read: dict[str, list[Tensor]] = defaultdict(list)
        self.called: set[str] = set()
        self._kept: tuple[tuple[str, ...], list[Tensor], dict[str, list[tuple[Tensor, Tensor]]]] = ((), [], {})
        self._record(model, example_input)
        self.sources: dict[str, set[str]] = {}
        self.parameters: dict[str, set[str]] = {}
        self.mixes: set[str] = set()
        leaves = {leaf: name for name, runs in self.made.items() for leaf in runs}
        for name in self.read:
            self._walk(name, leaves)

    def _record(self, model: nn.Module, example_input: Batch) -> None:
        generator = torch.Generator().manual_seed(0)

        def before(name: str) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
                if isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
                    self.read[name].append(inputs[0].clone())  # what follows may change it in place

            return hook

        def after(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
                leaf = torch.randn(output.shape, generator=generator).to(output).requires_grad_()
                self.made[name].append(leaf)
                return leaf.clone()

            return hook

        def note(name: str) -> Any:
            return lambda *_: self.called.add(name)

        hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules() if name]
        hooks += [module.register_forward_pre_hook(before(name)) for name, module in self.parts.items()]
        hooks += [module.register_forward_hook(after(name)) for name, module in self.parts.items()]
        with (
            removed_after(hooks),
            restored(model.modules()),
            trainable(model),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            torch.random.fork_rng(),
        ):
            model(example_input)

    def _walk(self, name: str, leaves: Mapping[Tensor, str]) -> None:
        """Find what reaches the input of a part."""
        sources, parameters, seen = set(), set(), set()
        waiting: list[Any] = [run.grad_fn if run.grad_fn is not None else run for run in self.read[name]]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if (tensor := _tensor_of(node)) is not None:
                if tensor in leaves:
                    sources.add(leaves[tensor])
                elif tensor in self.names:
                    parameters.add(self.names[tensor])
                continue
            if node.name().startswith(PRODUCT):
                self.mixes.add(name)
            waiting += [parent for parent, _ in node.next_functions if parent is not None]
        self.sources[name], self.parameters[name] = sources, parameters

    def axis(self, name: str, values: Tensor) -> int:
        """The axis of a part's channels in what it reads or makes."""
        vectors = isinstance(self.parts[name], (nn.Linear, nn.Embedding))
        return values.ndim - 1 if vectors else 1

    def passes_on(self, name: str) -> bool:
        """Whether a part makes each channel of the channel of the same number alone."""
        part = self.parts[name]
        return isinstance(part, _BatchNorm) or (
            isinstance(part, _ConvNd) and 1 < part.groups == part.in_channels == part.out_channels
        )

    def makers_of(self, readers: Mapping[str, set[int]]) -> Numbers:
        """The channels made by parts that influence channels read by others."""
        outputs, weights = [], []
        for name, channels in readers.items():
            for run in self.read[name]:
                outputs.append(run)
                weights.append(self._at(name, run, channels))
        sources = sorted(set().union(*(self.sources[name] for name in readers)))
        runs = [(name, run) for name in sources for run in self.made[name]]
        found = torch.autograd.grad(outputs, [run for _, run in runs], weights, retain_graph=True, allow_unused=True)
        return self._influenced(runs, found)

    def readers_of(self, makers: Mapping[str, set[int]], readers: Sequence[str]) -> Numbers:
        """The channels that `readers` read, as far as channels made by parts influence them."""
        runs = [(name, run) for name in readers for run in self.read[name]]
        weights, backwards = self._backwards(tuple(readers))
        reached = {name: backwards[name] for name in makers if backwards.get(name)}
        if not reached:
            return {}
        outputs = [own for derivatives in reached.values() for _, own in derivatives]
        at = [self._at(name, leaf, makers[name]) for name, derivatives in reached.items() for leaf, _ in derivatives]
        # The derivative of a derivative by its weights is the derivative forwards.
        return self._influenced(runs, torch.autograd.grad(outputs, weights, at, retain_graph=True, allow_unused=True))

    def _backwards(self, readers: tuple[str, ...]) -> tuple[list[Tensor], dict[str, list[tuple[Tensor, Tensor]]]]:
        """Weights of what `readers` read, and maker -> (its run, the derivative of the weighted sum by it) where there is one."""
        if self._kept[0] != readers:
            runs = [run for name in readers for run in self.read[name]]
            weights = [torch.zeros_like(run, requires_grad=True) for run in runs]
            leaves = [(name, run) for name, own in self.made.items() for run in own]
            options = {"create_graph": True, "retain_graph": True, "allow_unused": True}
            found = torch.autograd.grad(runs, [leaf for _, leaf in leaves], weights, **options)
            backwards: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for (name, leaf), own in zip(leaves, found, strict=True):
                if own is not None:
                    backwards[name].append((leaf, own))
            self._kept = (readers, weights, backwards)
        return self._kept[1], self._kept[2]

    def of_parameter(self, parameter: Tensor, readers: Mapping[str, set[int]]) -> Tensor:
        """Which elements of a parameter influence the channels that parts read: True or False, shape of the parameter."""
        runs = [(name, run) for name in readers for run in self.read[name]]
        weights = [self._at(name, run, readers[name]) for name, run in runs]
        (found,) = torch.autograd.grad(
            [run for _, run in runs], [parameter], weights, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(parameter, dtype=torch.bool) if found is None else found != 0

    def _at(self, name: str, values: Tensor, channels: set[int]) -> Tensor:
        """Random numbers at some channels of a part, zero at others."""
        index = torch.tensor(sorted(channels), device=values.device)
        axis = self.axis(name, values)
        shape = [len(index) if dim == axis else size for dim, size in enumerate(values.shape)]
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(values)
        return torch.zeros_like(values).index_copy(axis, index, numbers)

    def _influenced(self, runs: Sequence[tuple[str, Tensor]], derivatives: Sequence[Tensor | None]) -> Numbers:
        found: Numbers = defaultdict(set)
        for (name, _), own in zip(runs, derivatives, strict=True):
            if own is not None:
                axis = self.axis(name, own)
                nonzero = (own != 0).movedim(axis, 0).flatten(1).any(1)
                found[name] |= set(nonzero.nonzero().flatten().tolist())
        return {name: channels for name, channels in found.items() if channels}


def _tensor_of(node: Any) -> Tensor | None:
    """The tensor that a graph of derivatives ends in at `node`, if it does."""
    return node if isinstance(node, Tensor) else getattr(node, "variable", None)


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Have gradients recorded through every parameter for a while."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
