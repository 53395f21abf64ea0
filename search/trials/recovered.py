"""Recovered weights that more than one policy may start from: recovery in float32 depends on no precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...spaces.knobs.kind import LayerKind
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.policies.float_precision import FLOAT32
from ...spaces.policies.policy import LayerPolicy, Policy
from ...spaces.policies.quantization_scheme import Scheme
from ...studies.store.records import TrialRecord
from ...studies.store.store import Store
from ...studies.store.trial_state import TrialState
from ...studies.study_file.spec import StudySpec


@dataclass(frozen=True)
class Source:
    """The trial that recovered weights come from, and their file."""

    trial: int
    path: Path


class RecoveredWeights:
    """What the finished trials of a study have recovered, by structure; nothing where the study does not allow it."""

    def __init__(self, store: Store, spec: StudySpec) -> None:
        self._store, self._spec = store, spec
        self._trials: dict[Policy, int] = {}

    def offer(self, trial: TrialRecord) -> None:
        """Have later trials take over the weights of one that has ended, if it was recovered to its end."""
        if not self._spec.reuse_recovered or trial.state is not TrialState.COMPLETE:
            return
        if (kept := structure(trial.policy)) is not None:
            self._trials.setdefault(kept, trial.number)

    def of(self, policy: Policy) -> Source | None:
        """Where the weights of a policy's structure are; None where they have to be trained."""
        kept = structure(policy)
        number = self._trials.get(kept) if kept is not None else None
        if number is None:
            return None
        files = {record.kind: record.path for record in self._store.artifacts(self._spec.study, number)}
        return Source(number, Path(files["weights"]))


def structure(policy: Policy) -> Policy | None:
    """What of a policy its recovered weights follow from: all but bits and the precision of floats.

    None without recovery, and where weights share values: those that are kept are not those that were trained.
    """
    coded = any(layer.codebook != LayerPolicy().codebook for layer in policy.layers.values())
    if coded or not policy.recovery.epochs:
        return None
    kinds = [kind for kind in KNOB_KINDS.values() if kind.is_quantizing and isinstance(kind, LayerKind)]
    full = {kind.name: kind.neutral for kind in kinds}
    layers = {name: replace(layer, **full) for name, layer in policy.layers.items()}
    return replace(policy, layers=layers, scheme=Scheme(), float_precision=FLOAT32, recurrent={}, embeddings={})
