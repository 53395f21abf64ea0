"""The store: every study, trial, measurement and front, by value, in SQLite or PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, func, select

from ...core.defaults import DEFAULT_STORAGE
from ...core.errors import StoreError
from ...core.measurement import Measurement
from ...spaces.policies.policy import Policy
from ..study_file.spec import StudySpec, incompatible_changes
from . import tables
from .database import Database
from .lease import Lease
from .queries import (
    baseline_rows,
    find_study,
    find_trial,
    find_trials,
    front_records,
    newest_front_id,
    paid_trials,
    study_record,
    trial_records,
    trial_summaries,
)
from .records import (
    ArtifactRecord,
    FrontRecord,
    MeasurementRecord,
    SensitivityRecord,
    State,
    StudyRecord,
    TargetRecord,
    TrialRecord,
    TrialSummary,
    measurement_of,
    sensitivity_of,
    study_of,
)


class Store:
    """Everything slimfront knows of its studies.

    Ownership: one process, the search's driver, writes to a study; any number of processes read it meanwhile. A store
    may be used from several threads, each call being one transaction of its own: what a call wrote is there when it
    returns, even if the process is killed right after. Everything handed out is a frozen copy that later writes do
    not change. A store does not survive a fork; open another in the child.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`; Optuna's tables may lie in the same database.
        create: make a SQLite file that is not there yet.

    Raises:
        StoreError: from every method, when the database cannot be opened or is locked, or a study is not in it.
    """

    def __init__(self, url: str = DEFAULT_STORAGE, *, create: bool = True) -> None:
        self._database = Database(url, create=create)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self._database.name!r})"

    @property
    def url(self) -> str:
        """The database's URL with its driver and password, as SQLAlchemy and so Optuna take it."""
        return self._database.url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Close all connections; the store is of no use after."""
        self._database.close()

    def lease(self, study: str) -> Lease:
        """The right to be the only driver of a study, which need not be there yet; not taken yet."""
        return Lease(self._database, study)

    def watch(self, engine: Engine) -> None:
        """Have another engine over the same database, Optuna's, refuse writes without the lease and tell its errors as one line."""
        self._database.watch(engine)

    # Studies

    def create_study(
        self, spec: StudySpec, workload_fingerprint: str, versions: Mapping[str, Any], machine: Mapping[str, Any]
    ) -> StudyRecord:
        """A new study, named as its spec says.

        Args:
            workload_fingerprint: identifies the model and data, to notice that they changed.
            versions: package -> version. machine: what it ran on. Both JSON values.

        Raises:
            StoreError: there is one of that name.
        """
        with self._database.writing() as session:
            if session.scalar(select(tables.Study.id).filter_by(name=spec.study)) is not None:
                raise StoreError(f"{self._database.name}: study {spec.study!r} is there already")
            row = tables.Study(
                name=spec.study,
                spec=spec.to_json(),
                workload_fingerprint=workload_fingerprint,
                versions=dict(versions),
                machine=dict(machine),
            )
            session.add(row)
        return study_of(row, [])

    def update_spec(self, spec: StudySpec) -> StudyRecord:
        """Continue a study with a changed file.

        Raises:
            StoreError: what may not change within a study did.
        """
        with self._database.writing() as session:
            row = find_study(session, spec.study)
            begun = StudySpec.from_json(row.spec)
            if changes := incompatible_changes(begun, spec):
                here = f"go on with seed {begun.seed}, or " if changes == ["seed"] else ""
                changed = ", ".join(changes)
                raise StoreError(
                    f"study {spec.study!r} has trials with another {changed}; {here}give the study another name"
                )
            row.spec = spec.to_json()
            return study_record(session, row)

    def get_study(self, name: str) -> StudyRecord:
        """The study of that name."""
        with self._database.reading() as session:
            row = find_study(session, name)
            return study_record(session, row)

    def has_study(self, name: str) -> bool:
        """Whether there is a study of that name."""
        with self._database.reading() as session:
            return session.scalar(select(tables.Study.id).filter_by(name=name)) is not None

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(tables.Study).order_by(tables.Study.id)).all()
            return [study_record(session, row) for row in rows]

    def set_baseline(self, study: str, measurements: Iterable[Measurement], target: str) -> None:
        """Store the uncompressed model's measurements, once: hypervolumes are only comparable over one baseline.

        Raises:
            StoreError: the study has its baseline.
        """
        with self._database.writing() as session:
            row = find_study(session, study)
            if baseline_rows(session, row):
                raise StoreError(f"study {study!r} has its baseline already")
            session.add_all(_measurement_rows(measurements, study_id=row.id, rung=0, target=target))

    def set_remark(self, study: str, remark: str | None) -> None:
        """Say what is to be known of how a study is searched, in place of what was said before."""
        with self._database.writing() as session:
            find_study(session, study).remark = remark

    # Sensitivities

    def add_sensitivities(self, study: str, records: Iterable[SensitivityRecord]) -> None:
        """Add what single choices were found to damage."""
        with self._database.writing() as session:
            study_id = find_study(session, study).id
            session.add_all(
                tables.Sensitivity(
                    study_id=study_id,
                    knob=record.knob,
                    choice=json.dumps(record.choice),
                    digest=record.digest,
                    kl=record.kl.value,
                    low=record.kl.low,
                    high=record.kl.high,
                    n=record.kl.n,
                    seconds=record.seconds,
                    source=record.source,
                )
                for record in records
            )

    def sensitivities(self, study: str) -> list[SensitivityRecord]:
        """What single choices were found to damage, in the order of the space's knobs."""
        with self._database.reading() as session:
            wanted = select(tables.Sensitivity).filter_by(study_id=find_study(session, study).id)
            return [sensitivity_of(row) for row in session.scalars(wanted.order_by(tables.Sensitivity.id))]

    # Trials

    def start_trial(
        self, study: str, number: int, policy: Policy, worker: str | None = None, retry_of: int | None = None
    ) -> None:
        """A new trial, running.

        Raises:
            StoreError: the study has a trial of that number.
        """
        with self._database.writing() as session:
            row = find_study(session, study)
            if session.scalar(select(tables.Trial.id).filter_by(study_id=row.id, number=number)) is not None:
                raise StoreError(f"study {study!r} has a trial {number} already")
            session.add(
                tables.Trial(
                    study_id=row.id,
                    number=number,
                    policy=policy.to_json(),
                    digest=policy.digest,
                    worker=worker,
                    retry_of=retry_of,
                )
            )

    def set_worker(self, study: str, number: int, worker: str) -> None:
        """Note which worker took a trial."""
        with self._database.writing() as session:
            find_trial(session, study, number).worker = worker

    def add_measurements(
        self, study: str, number: int, measurements: Iterable[Measurement], rung: int = 0, target: str | None = None
    ) -> None:
        """Add what was measured of a trial; an earlier figure of the same name stays in the history.

        Args:
            rung: fidelity level the trial was at.
            target: what it was measured on; None where the number depends on no machine.

        Raises:
            ValueError: a number is not finite.
        """
        with self._database.writing() as session:
            trial = find_trial(session, study, number)
            about = {"study_id": trial.study_id, "trial_id": trial.id, "rung": rung, "target": target}
            session.add_all(_measurement_rows(measurements, **about))

    def finish_trial(
        self,
        study: str,
        number: int,
        state: State,
        reason: str | None = None,
        violations: Mapping[str, float] | None = None,
    ) -> None:
        """End a running trial, once.

        Args:
            state: "complete", "infeasible" or "failed"; the last two with a reason.
            violations: constraint -> how far beyond it (<= 0 is satisfied), as far as they were judged.

        Raises:
            StoreError: the trial has ended before.
        """
        if state not in tables.STATES[1:]:
            raise ValueError(f"a trial ends as one of {', '.join(tables.STATES[1:])}, not {state!r}")
        if state != "complete" and not reason:
            raise ValueError(f"a trial that ends {state} needs a reason")
        with self._database.writing() as session:
            trial = find_trial(session, study, number)
            if trial.state != "running":
                raise StoreError(f"trial {number} of study {study!r} has ended: {trial.state}")
            trial.state, trial.reason, trial.finished = state, reason, tables.now()
            trial.violations = None if violations is None else dict(violations)

    def get_trial(self, study: str, number: int) -> TrialRecord:
        """The trial of that number."""
        with self._database.reading() as session:
            find_trial(session, study, number)
            return trial_records(session, study, tables.Trial.number == number)[0]

    def find_trial(self, study: str, number: int) -> TrialRecord | None:
        """The trial of that number; None where there is none."""
        with self._database.reading() as session:
            return next(iter(trial_records(session, study, tables.Trial.number == number)), None)

    def trials(self, study: str, state: State | None = None) -> list[TrialRecord]:
        """The study's trials, all or those in one state, by number."""
        with self._database.reading() as session:
            return trial_records(session, study, *([] if state is None else [tables.Trial.state == state]))

    def trial_summaries(self, study: str) -> list[TrialSummary]:
        """The study's trials by number, without their policies and measurements: what lists need, in a fraction of the time."""
        with self._database.reading() as session:
            return trial_summaries(session, find_study(session, study).id)

    def paid_trials(self) -> Mapping[str, int]:
        """Study -> trials that its budget has paid for, as `progress.ended` counts them; none of those without any."""
        with self._database.reading() as session:
            return paid_trials(session, Policy().digest)

    def running_trials(self, study: str) -> list[TrialRecord]:
        """Trials that have not ended; with no driver at work, those whose driver was killed."""
        return self.trials(study, "running")

    def measurement_history(self, study: str, number: int | None = None) -> list[MeasurementRecord]:
        """Every measurement ever made of a trial, or of the baseline where `number` is None, oldest first."""
        with self._database.reading() as session:
            study_id = find_study(session, study).id
            trial_id = None if number is None else find_trial(session, study, number).id
            rows = session.scalars(
                select(tables.MeasurementRow)
                .filter_by(study_id=study_id, trial_id=trial_id)
                .order_by(tables.MeasurementRow.id)
            )
            return [MeasurementRecord(number, measurement_of(row), row.rung, row.target, row.made_at) for row in rows]

    # Artifacts

    def record_artifact(self, study: str, number: int, kind: str, path: str, sha256: str, size: int) -> None:
        """Note a file of a trial; one noted before at the same path is replaced.

        Args:
            size: in bytes.
        """
        with self._database.writing() as session:
            trial = find_trial(session, study, number)
            row = session.scalar(select(tables.Artifact).filter_by(trial_id=trial.id, path=path))
            row = row or tables.Artifact(trial_id=trial.id, path=path)
            row.kind, row.sha256, row.bytes, row.made_at = kind, sha256, size, tables.now()
            session.add(row)

    def artifacts(self, study: str, number: int) -> list[ArtifactRecord]:
        """The trial's files, oldest first."""
        with self._database.reading() as session:
            trial = find_trial(session, study, number)
            rows = session.scalars(select(tables.Artifact).filter_by(trial_id=trial.id).order_by(tables.Artifact.id))
            return [ArtifactRecord(row.kind, row.path, row.sha256, row.bytes, row.made_at) for row in rows]

    # Fronts

    def save_front(self, study: str, members: Sequence[int], hypervolume: float) -> bool:
        """Write a snapshot of the front if its members are not those of the last one.

        Args:
            members: trial numbers, in any order.

        Returns:
            Whether one was written.

        Raises:
            StoreError: a member is no trial of the study.
        """
        with self._database.writing() as session:
            study_id = find_study(session, study).id
            last = front_records(session, study_id, newest_only=True)
            if last and last[0].members == tuple(sorted(set(members))):
                return False
            trials = find_trials(session, study, set(members))
            ended = select(func.count()).where(tables.Trial.study_id == study_id, tables.Trial.state != "running")
            front = tables.Front(study_id=study_id, hypervolume=hypervolume, trials=session.scalar(ended))
            session.add(front)
            session.flush()
            session.add_all(tables.FrontMember(front_id=front.id, trial_id=trial.id) for trial in trials)
            return True

    def current_front(self, study: str) -> FrontRecord | None:
        """The newest snapshot, or None before the first."""
        with self._database.reading() as session:
            newest = front_records(session, find_study(session, study).id, newest_only=True)
            return newest[0] if newest else None

    def fronts(self, study: str) -> list[FrontRecord]:
        """All snapshots, oldest first."""
        with self._database.reading() as session:
            return front_records(session, find_study(session, study).id)

    def front_trials(self, study: str) -> list[TrialRecord]:
        """The trials of the newest snapshot, by number."""
        with self._database.reading() as session:
            newest = newest_front_id(find_study(session, study).id)
            members = select(tables.FrontMember.trial_id).where(tables.FrontMember.front_id == newest)
            return trial_records(session, study, tables.Trial.id.in_(members))

    # Targets

    def save_target(self, name: str, card: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Store a target as just profiled, in place of what was known of that name; both JSON values."""
        with self._database.writing() as session:
            row = session.scalar(select(tables.Target).filter_by(name=name)) or tables.Target(name=name)
            row.card, row.fingerprint, row.measured_at = dict(card), dict(fingerprint), tables.now()
            session.add(row)

    def targets(self) -> list[TargetRecord]:
        """All profiled targets, by name."""
        with self._database.reading() as session:
            rows = session.scalars(select(tables.Target).order_by(tables.Target.name))
            return [TargetRecord(row.name, row.card, row.fingerprint, row.measured_at) for row in rows]


def _measurement_rows(measurements: Iterable[Measurement], **about: Any) -> list[tables.MeasurementRow]:
    rows = [tables.MeasurementRow(**measurement.to_dict(), **about) for measurement in measurements]
    for row in rows:
        if not all(map(math.isfinite, (row.value, row.low, row.high))):
            raise ValueError(f"{row.name} is not finite: {row.value} in [{row.low}, {row.high}]")
    return rows
