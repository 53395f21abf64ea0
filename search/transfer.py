"""What earlier studies in the database already found out about a workload, for the sampler of a new one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..core.errors import PolicyError
from ..core.metrics import is_quality
from ..spaces.policies.policy import Policy
from ..spaces.space import Choice, Space
from ..studies.store.records import SensitivityRecord, StudyRecord, TrialRecord
from ..studies.store.store import Store
from ..studies.store.trial_state import TrialState
from ..studies.study_file.spec import StudySpec
from .optuna.attributes import damage_noted
from .sampler.designer import TransferredTrial

MOST_TRIALS = 200
"""Trials of other studies that are read, the newest: what a proposal takes grows with them."""


def earlier_trials(store: Store, spec: StudySpec, space: Space) -> list[TransferredTrial]:
    """Trials of other studies with the same model and data whose policies are points of `space`.

    Their divergence holds on any target, but not of trials that were stopped before their recovery ended; what was measured
    counts only where the target is the same and timed alike. Quality is left to be judged anew.
    """
    study = store.get_study(spec.study)
    found: dict[str, TransferredTrial] = {}
    for other in _same_workload(store, study):
        same_target = other.spec.target == spec.target and other.is_timed_as(study)
        for trial in store.trials(other.name):
            if trial.digest not in found and (parameters := _point(space, trial.policy)) is not None:
                found[trial.digest] = _transferred(trial, parameters, spec, same_target)
    useful = [trial for trial in found.values() if trial.damage is not None or any(v is not None for v in trial.values)]
    return useful[-MOST_TRIALS:]


def earlier_sensitivities(store: Store, spec: StudySpec) -> dict[tuple[str, int], SensitivityRecord]:
    """(policy digest, samples) -> what other studies of the same model and data measured of it, the newest."""
    study = store.get_study(spec.study)
    return {
        (record.digest, record.kl.n): replace(record, seconds=0.0, source=record.source or other.name)
        for other in _same_workload(store, study)
        for record in store.sensitivities(other.name)
    }


def _same_workload(store: Store, study: StudyRecord) -> Iterator[StudyRecord]:
    for other in store.studies():
        if other.name != study.name and other.workload_fingerprint == study.workload_fingerprint:
            yield other


def _point(space: Space, policy: Policy) -> dict[str, Choice] | None:
    try:
        return space.parameters(policy)
    except PolicyError:
        return None  # it decides what this space does not offer


def _transferred(
    trial: TrialRecord, parameters: dict[str, Choice], spec: StudySpec, same_target: bool
) -> TransferredTrial:
    measured = {name: measurement.value for name, measurement in trial.measurements.items()}
    values = [measured.get(name) if same_target and not is_quality(name) else None for name in spec.objectives]
    damage = damage_noted(measured) if trial.state is not TrialState.PRUNED else None
    return TransferredTrial(parameters, damage, tuple(values))
