"""The store: every study, trial, measurement and front, by value, in SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, select

from ...core.defaults import DEFAULT_STORAGE
from ...core.errors import StoreError
from ...core.measurement import Measurement
from ...spaces.policies.policy import Policy
from . import tables
from .artifact_rows import ArtifactRows
from .changes import TrialEnd, add_front, end_trial
from .database import Database
from .lease import Lease
from .patience import Patience, patiently
from .queries import (
    ended_trials,
    find_study,
    find_trial,
    front_records,
    front_sizes,
    measurement_histories,
    measurement_records,
    newest_front_id,
    newest_values,
    paid_trials,
    sensitivity_records,
    target_records,
    trial_records,
    trial_summaries,
)
from .records import (
    FREE_DIGESTS,
    FrontRecord,
    FrontSize,
    MeasurementRecord,
    SensitivityRecord,
    TargetRecord,
    TrialRecord,
    TrialSummary,
    Violation,
)
from .rows import measurement_rows, sensitivity_row
from .study_rows import StudyRows
from .trial_state import TrialState


@patiently
class Store(StudyRows, ArtifactRows):
    """Everything slimfront knows of its studies.

    Ownership: one process, the search's driver, writes to a study; any number of processes read it meanwhile. A store
    may be used from several threads, each call being one transaction of its own: what a call wrote is there when it
    returns, even if the process is killed right after. Everything handed out is a frozen copy that later writes do
    not change. A store does not survive a fork; open another in the child.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`; Optuna's tables may lie in the same database.
        create: create the SQLite file if it does not exist.
        artifacts: folder or URL to look for artifacts in before the place that each study has them by its row; such as where they
            were moved.

    Attributes:
        patience: how calls wait where the database does not answer now; not at all unless that is asked for.

    Raises:
        StoreError: from every method, when the database cannot be opened or is locked, or a study is not in it.
    """

    def __init__(self, url: str = DEFAULT_STORAGE, *, create: bool = True, artifacts: str | None = None) -> None:
        super().__init__(Database(url, create=create))
        self.artifacts_root = artifacts
        self.patience = Patience()

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
        """Have another engine over the same database, Optuna's, refuse writes without the lease and word its errors as one line."""
        self._database.watch(engine)

    # Sensitivities

    def add_sensitivities(self, study: str, records: Sequence[SensitivityRecord]) -> None:
        """Add measured damages of single choices."""
        with self._database.writing() as session:
            study_id = find_study(session, study).id
            session.add_all(sensitivity_row(record, study_id) for record in records)

    def sensitivities(self, study: str) -> list[SensitivityRecord]:
        """What single choices were found to damage, in the order of the space's knobs."""
        with self._database.reading() as session:
            return sensitivity_records(session, study)

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
        self, study: str, number: int, measurements: Sequence[Measurement], rung: int = 0, target: str | None = None
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
            session.add_all(measurement_rows(measurements, **about))

    def finish_trial(
        self,
        study: str,
        number: int,
        state: TrialState,
        reason: str | None = None,
        violations: Sequence[Violation] | None = None,
        *,
        rung: int | None = None,
        driver_died: bool = False,
    ) -> None:
        """End a running trial, once.

        Args:
            state: any but running; all but complete need a reason.
            violations: how it stands to the constraints that were judged.
            rung: that it was pruned at.
            driver_died: whether it was interrupted because its search's process died.

        Raises:
            StoreError: the trial has ended before.
        """
        end = TrialEnd(TrialState(state), reason, violations, rung, driver_died)
        with self._database.writing() as session:
            end_trial(session, study, number, end)

    def set_reason(self, study: str, number: int, reason: str | None) -> None:
        """Change what a trial that has ended says of itself."""
        with self._database.writing() as session:
            find_trial(session, study, number).reason = reason

    def get_trial(self, study: str, number: int) -> TrialRecord:
        """The trial of that number."""
        with self._database.reading() as session:
            find_trial(session, study, number)
            return trial_records(session, study, tables.Trial.number == number)[0]

    def find_trial(self, study: str, number: int) -> TrialRecord | None:
        """The trial of that number; None where there is none."""
        with self._database.reading() as session:
            return next(iter(trial_records(session, study, tables.Trial.number == number)), None)

    def trials(self, study: str, state: TrialState | None = None) -> list[TrialRecord]:
        """The study's trials, all or those in one state, by number."""
        with self._database.reading() as session:
            return trial_records(session, study, *([] if state is None else [tables.Trial.state == state]))

    def trial_summaries(self, study: str) -> list[TrialSummary]:
        """The study's trials by number, without their policies and measurements: what lists need, in a fraction of the time."""
        with self._database.reading() as session:
            return trial_summaries(session, find_study(session, study).id)

    def paid_trials(self) -> Mapping[str, int]:
        """Study -> trials that its budget has paid for, as `budget_rules.ended` counts them; none of those without any."""
        with self._database.reading() as session:
            return paid_trials(session, FREE_DIGESTS)

    def compressed_values(self, study: str, metric: str) -> Mapping[int, float]:
        """Trial -> its newest value of a metric, of all trials that compress anything and have one."""
        with self._database.reading() as session:
            return newest_values(session, find_study(session, study).id, metric, FREE_DIGESTS)

    def running_trials(self, study: str) -> list[TrialRecord]:
        """Trials that have not ended; with no driver at work, those whose driver was killed."""
        return self.trials(study, TrialState.RUNNING)

    def measurement_history(self, study: str, number: int | None = None) -> list[MeasurementRecord]:
        """Every measurement ever made of a trial, or of the baseline where `number` is None, oldest first."""
        with self._database.reading() as session:
            return measurement_records(session, study, number)

    def measurement_histories(self, study: str) -> Mapping[int, list[MeasurementRecord]]:
        """Trial -> `measurement_history`, of all trials that were measured."""
        with self._database.reading() as session:
            return measurement_histories(session, find_study(session, study).id)

    # Fronts

    def save_front(self, study: str, members: Sequence[int], hypervolume: float) -> bool:
        """Write a snapshot of the front if its members are not those of the last one.

        Args:
            members: trial numbers, in any order.

        Returns:
            Whether one was written.

        Raises:
            StoreError: a member is not a trial of the study.
        """
        with self._database.writing() as session:
            return add_front(session, study, members, hypervolume)

    def current_front(self, study: str) -> FrontRecord | None:
        """The newest snapshot, or None before the first."""
        with self._database.reading() as session:
            newest = front_records(session, find_study(session, study).id, newest_only=True)
            return newest[0] if newest else None

    def fronts(self, study: str) -> list[FrontRecord]:
        """All snapshots, oldest first."""
        with self._database.reading() as session:
            return front_records(session, find_study(session, study).id)

    def front_sizes(self, study: str) -> list[FrontSize]:
        """How large each snapshot was, oldest first: of a long study in a fraction of the time of `fronts`."""
        with self._database.reading() as session:
            return front_sizes(session, find_study(session, study).id)

    def ended_trials(self, study: str) -> int:
        """How many of the study's trials have ended."""
        with self._database.reading() as session:
            return ended_trials(session, find_study(session, study).id)

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
            return target_records(session)
