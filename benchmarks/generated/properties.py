"""What holds of every model: pruned equals masked, exported equals torch, a policy survives JSON, and what is counted is what is built.

The masked model is made without the graph that prunes: which weights are left is read off the pruned model, all numbers of a generated
network being different. The others are zeroed where they are, and norms over channels see only the channels that are left.
"""

from __future__ import annotations

import copy
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from channel_parts import ChannelAttention, OverChannels
from grammar import randomise
from parts import NormOfChannels, RootMeanSquare
from slimfront.compression.batches import arrays_of, input_batches, outputs_of
from slimfront.compression.packing.packed_file import counted_bytes, packed_bytes, save_packed
from slimfront.compression.pruning.operators import low_rank
from slimfront.compression.pruning.proof import proven_groups
from slimfront.compression.pruning.prune import kept_channels, pruned_copy
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.core.batch import HOST, Batch, mapped, rows, taken, tensors_of
from slimfront.core.errors import CompressionError, EvaluationError, TrialError
from slimfront.evaluators.agreement import Agreement
from slimfront.evaluators.counts import counts_of
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.search.sampler.dimensions import encode
from slimfront.search.sampler.study_terms import space_dimensions
from slimfront.search.sampler.surrogate.analytic_cost import COUNTED, AnalyticCost
from slimfront.spaces.choices import SpaceChoices
from slimfront.spaces.models.blocks import examine_blocks
from slimfront.spaces.models.channel_groups import ChannelGroup
from slimfront.spaces.models.layers import LAYER_KINDS, Layer, all_layers, decidable, layer_at, macs_by_module
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import Policy
from slimfront.spaces.policies.resolved import effective_policy
from slimfront.spaces.space import Space
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.workload import MapDataset, Workload
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

TOLERANCE = 2e-3
"""The largest difference of outputs, relative to the largest, that rounding may cause."""

OFFERED: dict[str, list[Any]] = {
    "channel_sparsity": [0.0, 0.25, 0.5, 0.75], "weight_bits": [4, 8, 32], "activation_bits": [8, 32], "removed_blocks": [0, 1],
}  # fmt: skip


NORMS = (nn.LayerNorm, nn.GroupNorm, RootMeanSquare, nn.RMSNorm, OverChannels)
"""Modules of which what is made of one channel depends on how many there are."""

STRICT = "onnxruntime"
"""The runtime in which no artifact may differ from its torch model. Others have faults of their own, which end a trial with the reason."""


@dataclass
class Found:
    """What was found of one model.

    Attributes:
        groups, lost: channel groups that are proven, and those of them that lost channels.
        refused: why groups are left out, each once, without what is the model's own in them.
        not_lowered: why no runtime, each with its name, runs the artifact as the torch model.
    """

    groups: int = 0
    lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    not_lowered: Counter[str] = field(default_factory=Counter)


class Wrong(AssertionError):
    """A property does not hold."""


def judge(
    model: nn.Module, inputs: Any, chance: random.Random, quantizes: bool, runtimes: Sequence[str] = (STRICT,)
) -> Found:
    """Hold a network against all properties, for one policy at random.

    Args:
        inputs: a tensor [n, ...], a tuple or a dictionary of such.
        quantizes: whether to quantize too, which takes a second.
        runtimes: those on which the artifact is run.

    Raises:
        Wrong: one does not hold.
    """
    data = [(tree_map(lambda tensor, i=i: tensor[i], inputs), 0) for i in range(len(tree_leaves(inputs)[0]))]
    given = Workload(
        model, data, data, data, data, tree_map(lambda tensor: tensor[:1], inputs), metric=_any_score, loss=_any_loss
    )
    workload = adopt_workload(given, "generated", Path.cwd())
    batch = next(iter(input_batches(workload.calibration, len(data), HOST)))
    _tell_apart(workload.model)
    groups, refused = proven_groups(workload)
    layers = all_layers(workload.model, workload.example_input)
    space = _space(workload, layers, groups)
    policy = space.policy({knob.name: chance.choice(knob.choices) for knob in space.knobs})
    _hold_on_paper(space, policy)
    structure = Policy(channels=policy.channels)
    lost = kept_channels(structure, groups)
    pruned = pruned_copy(workload.model, workload.example_input, structure, groups, seed=chance.randrange(99))
    if lost:
        _hold_against_masks(workload.model, pruned, batch)
    _hold_blocks(workload.model, space.blocks, batch)
    _hold_factors(workload.model, [layer.name for layer in space.layers if layer.groups == 1], batch)
    _hold_counts(workload, layers, space, policy, pruned)
    found = Found(len(groups), len(lost), Counter(map(_kind, refused.values())))
    decided = effective_policy(policy) if quantizes else Policy()
    try:
        gone = pruned_copy(workload.model, workload.example_input, policy, groups) if quantizes else pruned
    except CompressionError as error:
        if (
            not policy.removed_blocks
        ):  # groups are proven with all blocks in place; a trial without some ends with this reason
            raise
        found.not_lowered[_kind(str(error))] += 1
        return found
    for runtime in runtimes:
        if (reason := _hold_against_artifact(gone, decided, workload.calibration, batch, runtime)) is not None:
            found.not_lowered[f"{runtime}: {reason}"] += 1
    return found


@torch.no_grad()
def _tell_apart(model: nn.Module) -> None:
    """Give a model whose parameters were computed, as where a norm of weights was folded in, numbers of which no two are equal again."""
    if any(len(own.unique()) < own.numel() for own in model.parameters()):
        randomise(model, 0)


def _any_score(outputs: Any, _targets: Any) -> float:
    return float(tree_leaves(outputs)[0].double().mean())


def _any_loss(outputs: Any, _targets: Any) -> Tensor:
    return tree_leaves(outputs)[0].square().mean()


def _space(workload: Workload, every: list[Layer], groups: list[ChannelGroup]) -> Space:
    model, example = workload.model, workload.example_input
    layers = [layer for layer in decidable(every, model, example) if layer.is_product]
    return Space(layers, groups, SpaceChoices(**OFFERED), blocks=examine_blocks(model, example)[0])


def _hold_on_paper(space: Space, policy: Policy) -> None:
    again = Policy.from_json(policy.to_json())
    _require(again == policy and again.digest == policy.digest, "a policy is another one after JSON")
    _require(space.policy(space.parameters(policy)) == policy, "a policy is another one after its parameters")


# Masked


def _hold_against_masks(model: nn.Module, pruned: nn.Module, inputs: Batch) -> None:
    chance = torch.Generator().manual_seed(1)
    other = mapped(lambda t: torch.randn(t.shape, generator=chance) if t.is_floating_point() else t.flip(0), inputs)
    with torch.no_grad(), _masked(model, pruned) as masked:
        _same(masked(other), pruned(other), "pruned is not masked")


class _masked:
    """The model with all weights zeroed in place that `pruned` has not."""

    def __init__(self, model: nn.Module, pruned: nn.Module) -> None:
        self.model, self.pruned = copy.deepcopy(model), pruned

    def __enter__(self) -> nn.Module:
        whole, left = self.model.state_dict(), self.pruned.state_dict()
        _require(whole.keys() == left.keys(), "the pruned model has other parameters")
        for name, tensor in whole.items():
            if tensor.is_floating_point():
                tensor.mul_(_mask(name, tensor, left[name]))
        for path, module in self.model.named_modules():
            if isinstance(module, NORMS) and module.weight is not None:
                _narrow(module, self.pruned.get_submodule(path))
            if isinstance(module, ChannelAttention):
                _narrow_attention(module, self.pruned.get_submodule(path))
        return self.model

    def __exit__(self, *_: object) -> None:
        pass


def _mask(name: str, whole: Tensor, left: Tensor) -> Tensor:
    """1 where a number of `whole` is in `left` too."""
    values, order = whole.flatten().sort()
    places = torch.searchsorted(values, left.flatten().contiguous()).clamp_max(len(values) - 1)
    _require(torch.equal(values[places], left.flatten()), f"{name} holds numbers that the model has not")
    return torch.zeros_like(whole).flatten().index_fill(0, order[places], 1.0).view_as(whole)


def _narrow(norm: nn.Module, pruned: nn.Module) -> None:
    """Have a norm over channels see those that are left: it is `pruned`, which makes zeros for the others."""
    left = _mask("", norm.weight.data, pruned.weight.data).bool() if len(norm.weight) != len(pruned.weight) else None  # pyright: ignore
    if left is None:
        return
    kept = left.nonzero().flatten()

    def hook(module: nn.Module, read: tuple[Tensor], made: Tensor) -> Tensor:
        axis = 1 if isinstance(module, (NormOfChannels, nn.GroupNorm, OverChannels)) else made.ndim - 1
        if isinstance(module, OverChannels) and not module.keeps_channels:
            return pruned(read[0].index_select(axis, kept))
        return torch.zeros_like(made).index_copy(axis, kept, pruned(read[0].index_select(axis, kept)))

    norm.register_forward_hook(hook)


def _narrow_attention(whole: ChannelAttention, pruned: nn.Module) -> None:
    """Have attention among channels see those that are left, whose values the whole model's layers make."""
    made, left = whole.v.weight, pruned.v.weight  # pyright: ignore
    if len(left) == len(made):  # pyright: ignore
        return
    kept = _mask("", whole.v.bias.data, pruned.v.bias.data).nonzero().flatten()  # pyright: ignore

    def hook(module: ChannelAttention, read: tuple[Tensor], _made: Tensor) -> Tensor:
        parts = [layer(read[0]) for layer in (module.q, module.k, module.v)]
        few = module.attend(*(part.index_select(1, kept) for part in parts))
        return torch.zeros_like(parts[2]).index_copy(1, kept, few)

    whole.register_forward_hook(hook)


# Blocks, counts, artifacts


def _hold_blocks(model: nn.Module, blocks: list[str], inputs: Batch) -> None:
    """A model without its blocks passes on what they read."""
    if not blocks:
        return
    gone = pruned_copy(model, taken(inputs, slice(1)), Policy(removed_blocks=tuple(blocks)), [])
    hooks = [model.get_submodule(name).register_forward_hook(lambda _m, read, _made: read[0]) for name in blocks]
    try:
        with torch.no_grad():
            _same(model(inputs), gone(inputs), "a removed block is not the identity")
    finally:
        for hook in hooks:
            hook.remove()


def _hold_factors(model: nn.Module, layers: list[str], inputs: Batch) -> None:
    """A model whose layers are products of two of full rank computes the same."""
    factored = copy.deepcopy(model)
    for name in layers:
        factored.set_submodule(name, low_rank(layer_at(model, name), 1.0))
    with torch.no_grad():
        _same(model(inputs), factored(inputs), "layers of full rank in two are not the layers")


def _hold_counts(workload: Workload, layers: list[Layer], space: Space, policy: Policy, built: nn.Module) -> None:
    """Parameters and BOPs that are counted of a point of the space are those of the model `built` without its channels."""
    example = workload.example_input
    kept = Policy(channels=policy.channels, layers=policy.layers)
    counted = counts_of(built, macs_by_module(built, example), kept)
    _require(
        counted["parameters"] == sum(p.numel() for p in built.parameters()), "counted parameters are not the built ones"
    )
    cost = AnalyticCost(space, layers, workload.model, example)
    predicted = cost(np.array([encode(space_dimensions(space), space.parameters(policy))]))[0]
    exact = _counted_exactly(workload.model, space.groups)
    for name, value in zip(COUNTED, predicted, strict=False):
        if name in exact and not np.isclose(value, counted[name], rtol=1e-6):
            raise Wrong(f"{name}: {value:.0f} is counted of the space, {counted[name]:.0f} of the built model")


def _counted_exactly(model: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """What a space's points are counted exactly of: nothing where a layer makes some of a group's channels, as of what is concatenated,
    and no parameters where any but the weights of layers have channels along two dimensions."""
    makers = (
        (group, model.get_submodule(name)) for group in groups if group.unit == "channel" for name in group.layers
    )
    if any(len(maker.weight) != group.channels for group, maker in makers if type(maker) in LAYER_KINDS):  # pyright: ignore
        return ()
    weights = {f"{name}.weight" for name, module in model.named_modules() if type(module) in LAYER_KINDS}
    others = (tensor for name, tensor in model.named_parameters() if name not in weights)
    is_thin = all(sum(size > 1 for size in tensor.shape) <= 1 for tensor in others)
    return ("bops", "parameters") if is_thin else ("bops",)


def _hold_against_artifact(
    model: nn.Module, policy: Policy, calibration: MapDataset, inputs: Batch, runtime: str
) -> str | None:
    """Why the model cannot be lowered; None where it was and computes the same."""
    at = SimpleNamespace(
        runtime=get_runtime(runtime), target=load_target(f"cpu-{runtime}").model_copy(update={"batch": rows(inputs)})
    )
    example = taken(inputs, slice(1))
    try:
        candidate = make_candidate(model, example, policy, calibration) if policy.layers else Candidate(policy, model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{at.runtime.suffix}"
            artifact = at.runtime.lower(candidate, example, at.target, path)
            outputs = outputs_of(at.runtime.load(artifact.path, at.target).run(arrays_of(inputs)))
            packed = packed_bytes(save_packed(candidate, Path(folder) / "packed"))
    except TrialError as error:
        return _kind(str(error))
    _require(packed == counted_bytes(candidate), f"{counted_bytes(candidate)} bytes are counted, {packed} are packed")
    agreement = Agreement.of(candidate, at)  # pyright: ignore[reportArgumentType]  # a context has more
    agreement.watch(inputs, outputs)
    try:
        agreement.require()
    except EvaluationError as error:
        if runtime == STRICT:
            raise Wrong(str(error)) from error
        return _kind(str(error))
    if not policy.layers and runtime == STRICT:
        with torch.no_grad():
            _same(model(inputs), outputs, "the artifact is not the torch model")
    return None


def _same(expected: Batch, found: Batch, problem: str) -> None:
    pairs = list(zip(tensors_of(expected), tensors_of(found), strict=True))
    for one, other in pairs:
        _require(one.shape == other.shape, f"{problem}: shapes {list(one.shape)} and {list(other.shape)}")
        if one.is_floating_point():
            difference, largest = float((one - other).abs().max()), float(one.abs().max())
            _require(difference <= TOLERANCE * largest, f"{problem}: {difference:.2g} of {largest:.2g}")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise Wrong(problem)


def _kind(reason: str) -> str:
    """A reason without the names and numbers of its model."""
    reason = re.sub(r"with channels removed, \S+ does not read", "with channels removed, READER does not read", reason)
    return re.sub(r"\d+(\.\d+)*", "N", reason)[:150]
