"""Recovered weights that more than one policy may start from: recovery in float32 depends on no precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.policies.draft import PolicyDraft
from ...spaces.policies.policy import LayerPolicy, Policy
from ...studies.files.study_files import WEIGHTS, StudyFiles
from ...studies.store.records import TrialRecord
from ...studies.store.trial_state import TrialState
from ...studies.study_file.spec import StudySpec

MOST_STRUCTURES = 20
"""Structures whose weights are kept for others although their trials are not on the front: those that were used last.

A search would else keep weights of every structure that it ever trained, which is nearly every trial of a large space.
"""


@dataclass(frozen=True)
class Source:
    """The trial that recovered weights come from, and their file."""

    trial: int
    path: Path


class RecoveredWeights:
    """What the finished trials of a study have recovered, by structure; nothing where the study does not allow it."""

    def __init__(self, files: StudyFiles, spec: StudySpec) -> None:
        self._files, self._spec = files, spec
        self._trials: dict[Policy, list[int]] = {}  # the structure that was used last comes last

    def offer(self, trial: TrialRecord) -> None:
        """Have later trials take over the weights of one that has ended, if it was recovered to its end."""
        if not self._spec.reuse_recovered or trial.state is not TrialState.COMPLETE:
            return
        if (kept := structure(trial.policy)) is not None:
            self._trials[kept] = [*self._trials.pop(kept, []), trial.number]

    def of(self, policy: Policy) -> Source | None:
        """Where the weights of a policy's structure are; None where they have to be trained, also since they are gone."""
        kept = structure(policy)
        if kept is None or kept not in self._trials:
            return None
        self._trials[kept] = numbers = self._trials.pop(kept)
        found = ((number, self._files.found(number, WEIGHTS)) for number in numbers)
        return next((Source(number, path) for number, path in found if path is not None), None)

    @property
    def recent(self) -> Sequence[Sequence[int]]:
        """The trials of each of the structures that were used last, which share their weights."""
        return list(islice(reversed(self._trials.values()), MOST_STRUCTURES))


def structure(policy: Policy) -> Policy | None:
    """What of a policy its recovered weights follow from: all but bits and the precision of floats.

    None without recovery, and where weights share values: those that are kept are not those that were trained.
    """
    coded = any(layer.codebook != LayerPolicy().codebook for layer in policy.layers.values())
    if coded or not policy.recovery.epochs:
        return None
    modules = tuple({*policy.layers, *chain.from_iterable(policy.module_choices.values())})
    draft = PolicyDraft.of(policy)
    for kind in KNOB_KINDS.values():
        if kind.is_quantizing:
            kind.write(draft, () if kind.subject == "model" else modules, kind.neutral)
    return draft.policy()
