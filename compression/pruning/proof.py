"""Proves numerically, for every channel group, that removing channels equals masking them.

The dependency graph says which channels of which layers belong together. Where it is wrong, as after a roll, a shuffle or a
slice of every other channel, the pruned model runs but computes something else. So each group loses channels at random, and
every layer that reads the remaining channels must read the same values as in the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ...core.batch import Batch, largest_difference, rows, taken
from ...core.interrupts import raise_if_interrupted
from ...spaces.models.channel_graph import ChannelGraph
from ...spaces.models.channel_groups import ChannelGroup, find_channel_groups
from ...spaces.models.failures import first_line
from ...workloads.contract import few_inputs
from ...workloads.workload import Workload
from ..activations import bytes_read
from .masked_units import masked_units
from .proof_plan import TOLERANCE, Loss, Plan, corrected, doubled, masked

MOST_READ = 2**28
"""Bytes of modules' inputs that a proof keeps, to compare them with those of the pruned model."""

MISPLACED = (
    "with channels removed, {reader} does not read what it read of the others: channels change places or numbers on the way "
    "(as by roll, flip, a shuffle or a slice), or what is kept is computed from all of them"
)


def proven_groups(workload: Workload) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Groups of a workload's model that can be pruned, and why the others cannot: `find_channel_groups`, proven on its data."""
    model, example = workload.model.eval(), workload.example_input
    groups, unprunable = find_channel_groups(model, example)
    proven, refuted = prove_groups(model, few_inputs(workload), groups)
    return proven, unprunable | refuted


def prove_groups(
    model: nn.Module, inputs: Batch, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups of which removing channels equals masking them, and {name: why not} of the others.

    All groups lose half of their channels, chosen at random, in one copy; then every other group the first ones, and the rest. In
    the whole model the lost channels are replaced by duplicates of kept ones, so that means and variances over channels, as of a
    layer norm, are the same in both. Every layer of the pruned copy continues with the inputs that it should have read, so that one
    pass judges all groups.

    Args:
        model: in eval mode; left as it is.
        inputs: a few samples, shape [n, ...].
    """
    if not groups:
        return [], {}
    inputs = taken(inputs, slice(_fitting(model, inputs)))
    prover = _Prover(model, ChannelGraph(copy.deepcopy(model), taken(inputs, slice(1))), inputs)
    reasons = prover.refuted(groups)
    # Two groups that fail only apart, as where one layer divides the channels of both, pass together; and channels at random may be
    # the same ones after a flip, which the first ones are not.
    for part in (groups[::2], groups[1::2]):
        reasons |= prover.refuted([group for group in part if group.name not in reasons], first=True)
    reasons |= prover.hidden([group for group in groups if group.name not in reasons])
    return [group for group in groups if group.name not in reasons], reasons


def _fitting(model: nn.Module, inputs: Batch) -> int:
    """How many samples a proof compares: as many as there are, or, at least one, as `MOST_READ` holds what modules read of."""
    return max(1, min(rows(inputs), MOST_READ // max(1, bytes_read(model, taken(inputs, slice(1))))))


@dataclass(frozen=True)
class _Prover:
    """Removes channels of groups and compares.

    Attributes:
        graph: of a copy of the model, which is whole again after each look.
        inputs: of a few samples.
    """

    model: nn.Module
    graph: ChannelGraph
    inputs: Batch

    def refuted(self, groups: Sequence[ChannelGroup], first: bool = False) -> dict[str, str]:
        """{group: reason} of those that fail; where the pruned model does not run at all, by bisection.

        Args:
            first: whether the first channels are lost, else some at random.
        """
        if not groups:
            return {}
        try:
            found, same_outputs = self._one_pass(groups, first)
        except Exception as error:  # the model's own code may raise anything with other widths
            raise_if_interrupted(error)
            return self._bisected(
                groups, first, f"with channels removed at random, the model does not run: {first_line(error)}"
            )
        if same_outputs:
            return found
        if not found:
            return self._bisected(groups, first, MISPLACED.format(reader="the model's output"))
        # The failing groups are known; the others were given correct inputs, and are tried again without them.
        return found | self.refuted([group for group in groups if group.name not in found], first)

    def hidden(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """{group: reason} of those that change the outputs where no reader's input is corrected.

        A reader may compute otherwise from fewer channels, as one that standardises its weight in every pass does, and the correct
        inputs of the next reader hide that.
        """
        if not groups or self._one_pass(groups, False, corrects=False)[1]:
            return {}
        why = MISPLACED.format(reader="the model's output")
        if len(groups) == 1:
            return {groups[0].name: why}
        first, second = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        apart = self.hidden(first) | self.hidden(second)
        return apart or {group.name: f"not together with {second[0].name}: {why}" for group in first}

    def _bisected(self, groups: Sequence[ChannelGroup], first: bool, reason: str) -> dict[str, str]:
        """{group: reason} of those that fail, where no single one was found to; `reason` is that of all `groups` together."""
        if len(groups) == 1:
            return {groups[0].name: reason}
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        apart = {name: why for half in halves for name, why in self.refuted(half, first).items()}
        return apart or {group.name: f"not together with {halves[1][0].name}: {reason}" for group in halves[0]}

    @torch.no_grad()
    def _one_pass(
        self, groups: Sequence[ChannelGroup], first: bool, corrects: bool = True
    ) -> tuple[dict[str, str], bool]:
        """{group: reason} of those whose readers read other values, and whether the outputs are the same.

        Args:
            corrects: whether readers continue with the values that they should have read; only then are they compared.
        """
        graph, model = self.graph, self.model
        losses = {
            group.name: Loss.of(group, graph.partitions(group.name), first, graph.normalises_parts(group.name))
            for group in groups
        }
        plan = Plan.of({name: list(graph.roles(name)) for name in losses}, losses)
        with masked_units(model, plan.copies), doubled(model, plan), masked(model, plan) as seen:
            expected = model(self.inputs)
        lost = {name: loss.lost for name, loss in losses.items()}
        with graph.without(lost) as pruned, corrected(pruned, plan, seen) if corrects else nullcontext({}) as failed:
            found = pruned(self.inputs)
        reasons = {name: MISPLACED.format(reader=reader) for name, reader in failed.items()}
        return reasons, largest_difference(expected, found) <= TOLERANCE
