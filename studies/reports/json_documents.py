"""What commands print with `--format json`: one document each, of plain JSON values. docs/reference/json.md describes them.

`status.StudyStatus.to_dict`, `front_table.front_document`, `audit_report.audit_document`, `studies.inspection.report.Inspection.to_dict`,
`profiles.target_document` and `profiles.profiles_document` are of the same kind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.newest_front import front_points, objectives_of
from ..files.executed import executed_precisions
from ..files.remade import Remade
from ..files.trial_log import last_lines
from ..reference_wording import reference_document, reference_name
from ..store.records import MeasurementRecord
from ..store.store import Store
from .front_table import front_document

if TYPE_CHECKING:
    from ..bundles.verify import Check  # for annotations only: it imports torch


def study_front_document(store: Store, name: str) -> dict[str, Any]:
    """The newest front of a study with its "reference" as `reference_document` has it, and "metric", what its accuracy is; without
    points before there is one.

    Raises:
        StoreError: there is no such study.
    """
    study = store.get_study(name)
    document = front_document(name, objectives_of(study), study.baseline, front_points(store, study))
    return {**document, "reference": reference_document(study), "metric": asdict(study.quality)}


def trial_document(store: Store, name: str, number: int) -> dict[str, Any]:
    """One trial: how it ended, its policy, and every figure ever measured of it.

    Raises:
        StoreError: there is no such study or trial.
    """
    trial, history = store.get_trial(name, number), store.measurement_history(name, number)
    newest = {record.measurement.name: record for record in history}
    return {
        "study": name,
        "trial": number,
        "reference": reference_name(store.get_study(name)),
        "state": trial.state,
        "reason": trial.reason,
        "retry_of": trial.retry_of,
        "worker": trial.worker,
        "started": trial.started.isoformat(),
        "finished": trial.finished.isoformat() if trial.finished else None,
        "policy_digest": trial.digest,
        "policy": json.loads(trial.policy_json),
        "executed": dict(executed_precisions(store, name, number)),
        "log": last_lines(store, name, number),
        "violations": {violation.constraint: violation.excess for violation in trial.violations},
        "measurements": [_measured(record, record is newest[record.measurement.name]) for record in history],
    }


def export_document(name: str, trial: int, folder: Path, remade: Remade | None) -> dict[str, Any]:
    """What was exported, its files, and the kinds of those that were made again, with those that came out differently."""
    files = sorted(file.name for file in folder.iterdir())
    again = None if remade is None else {"kinds": list(remade.kinds), "differing": list(remade.differing)}
    return {"study": name, "trial": trial, "bundle": str(folder), "files": files, "remade": again}


def checks_document(bundle: Path, checks: Sequence[Check]) -> dict[str, Any]:
    """What `verify` found; "holds" is null of a claim that could not be checked, and false if any claim does not hold."""
    holds = all(check.holds is not False for check in checks)
    return {"bundle": str(bundle), "holds": holds, "checks": [asdict(check) for check in checks]}


def _measured(record: MeasurementRecord, is_newest: bool) -> dict[str, Any]:
    about = {"rung": record.rung, "target": record.target, "made_at": record.made_at.isoformat()}
    return {**record.measurement.to_dict(), **about, "replaced": not is_newest}
