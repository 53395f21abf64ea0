"""A study in its database: trials, front, single points and bundles, without a search."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import UserError
from ..core.measurement import Measurement
from ..core.metrics import METRICS
from ..core.validation import suggestion
from ..studies.analysis.front import Objective, Point
from ..studies.analysis.newest_front import front_points, objectives_of, why_no_front
from ..studies.analysis.selection import pick
from ..studies.reports.front_table import front_frame, trials_frame
from ..studies.reports.status import StudyStatus, study_status
from ..studies.store.records import TrialRecord
from ..studies.store.store import Store
from ..studies.store.trial_state import TrialState
from ..studies.study_file.constraint import Constraint
from .audits import Audit
from .bundles import ExportedBundle, Verification, verified
from .shown import Report

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType

    from ..spaces.policies.policy import Policy
    from ..studies.study_file.spec import StudySpec
    from ..workloads.workload import Workload


class Study:
    """A study in its database.

    It may be opened while a search runs: what it returns is what is stored at that moment. `Study.open` and
    `slimfront.search` make one. It prints as `slimfront status` does, and shows its front in a notebook.

    Attributes:
        name: the study's name in the database.
        store: the database.
    """

    def __init__(self, store: Store, name: str) -> None:
        store.get_study(name)
        self.store, self.name = store, name

    @classmethod
    def open(
        cls, storage: str = DEFAULT_STORAGE, name: str | None = None, artifacts: str | Path | None = None
    ) -> Study:
        """The study called `name` in a database; the only one where no name is given.

        Args:
            storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.
            artifacts: folder or URL that its files were moved to, if they were; the database says where they were.

        Raises:
            UserError: no such database or study, or several studies and no name.
        """
        store = Store(storage, create=False, artifacts=None if artifacts is None else str(artifacts))
        if name is None:
            names = [study.name for study in store.studies()]
            if len(names) != 1:
                raise UserError(f"{storage} has {len(names)} studies: name one of {', '.join(names) or 'them'}")
            name = names[0]
        return cls(store, name)

    def close(self) -> None:
        """Close the database; it is closed with the program at the latest."""
        self.store.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def spec(self) -> StudySpec:
        """What is searched, as the study file says."""
        return self.store.get_study(self.name).spec

    @property
    def trials(self) -> pandas.DataFrame:
        """Every trial, a row each: trial, state, reason, retry_of, started, finished, policy_digest, and NAME, NAME_low and
        NAME_high of every measurement."""
        return trials_frame(self.store.trials(self.name))

    def trial(self, number: int) -> TrialRecord:
        """One trial: its state, policy and newest measurements by name.

        Raises:
            UserError: there is no such trial.
        """
        return self.store.get_trial(self.name, number)

    def policy(self, trial: int | TrialRecord) -> Policy:
        """The policy of a trial, by its number or the trial itself."""
        return (trial if isinstance(trial, TrialRecord) else self.trial(trial)).policy

    def front(self) -> pandas.DataFrame:
        """The Pareto front, best first by the first objective: trial, policy_digest, and NAME, NAME_low and NAME_high of every
        measurement, objectives first."""
        study = self.store.get_study(self.name)
        return front_frame(objectives_of(study), front_points(self.store, study))

    def show_front(self) -> Report:
        """The front as `slimfront front` prints it: under the uncompressed model, with the knee, and what is within noise."""
        from ..studies.reports.json_documents import study_front_document
        from ..studies.reports.report import front_table

        return Report(front_table(self.store, self.name), study_front_document(self.store, self.name))

    def show(self, trial: int | TrialRecord) -> Report:
        """One trial as `slimfront show` prints it: how it ended, its policy by layer, and every figure ever measured of it.

        Raises:
            UserError: there is no such trial.
        """
        from ..studies.reports.json_documents import trial_document
        from ..studies.reports.report import trial_report

        number = trial.number if isinstance(trial, TrialRecord) else trial
        return Report(trial_report(self.store, self.name, number), trial_document(self.store, self.name, number))

    def audit(self) -> Audit:
        """How FLOPs, BOPs and sizes rank the study's trials against their measured latency.

        Raises:
            UserError: too few trials were timed.
        """
        from ..studies.analysis.audit import audit

        trials = self.store.trials(self.name)
        return Audit(self.name, self.spec.target, audit(trials), trials)

    def pick(self, rule: str = "knee", where: str | Sequence[str] = ()) -> TrialRecord:
        """The point of the front that a rule picks: "knee", "fastest", "smallest" or "most-accurate".

        Args:
            where: conditions that it has to meet, such as "accuracy_drop <= 0.01".

        Raises:
            UserError: an unknown rule, a condition of another form, there is no front yet, or no point meets the conditions.
        """
        conditions = _conditions(where)
        study = self.store.get_study(self.name)
        points = front_points(self.store, study)
        if not points:
            raise UserError(f"{self.name} has no front yet: {why_no_front(self.store.trial_summaries(self.name))}")
        found = [point for point in points if _meets(point, conditions)]
        if not found:
            wanted = " and ".join(map(str, conditions))
            raise UserError(f"{self.name}: none of {len(points)} points of the front has {wanted}")
        return self.trial(pick(found, objectives_of(study), rule, study.baseline).trial)

    def best(self, metric: str, where: str | Sequence[str] = ()) -> TrialRecord:
        """The trial with the best value of a metric among those that met every constraint, on the front or not.

        Args:
            metric: a name of docs/reference/metrics.md.
            where: further conditions, such as "accuracy_drop <= 0.01".

        Raises:
            UserError: an unknown metric, a condition of another form, or no trial meets all of them.
        """
        if metric not in METRICS:
            raise UserError(f"unknown metric {metric!r}; {suggestion(metric, METRICS)}")
        conditions = _conditions(where)
        complete = self.store.trials(self.name, TrialState.COMPLETE)
        found = [trial for trial in complete if metric in trial.measurements and _meets(trial, conditions)]
        if not found:
            wanted = " and ".join([f"has {metric}", *map(str, conditions)])
            raise UserError(f"{self.name}: none of {len(complete)} complete trials {wanted}")
        sign = Objective.of(metric, self.store.get_study(self.name).quality).sign
        return min(found, key=lambda trial: (sign * trial.measurements[metric].value, trial.number))

    def paired_drop(self, trial: int | TrialRecord, other: int | TrialRecord) -> Measurement | None:
        """How much worse a point of the front is than another one on the test split, in the unit of the study's metric.

        Both scored the same samples, so that its 95 % interval, paired by sample, is narrower than that of the difference of two drops.
        None where the scores of one were not kept: those of points that were on the front when the search ended are.

        Raises:
            UserError: there is no such trial.
        """
        from ..studies.files.sample_scores import paired_drop  # torch, which nothing else here needs

        one, two = (each if isinstance(each, TrialRecord) else self.trial(each) for each in (trial, other))
        return paired_drop(self.store, self.name, one.number, two.number)

    def status(self) -> StudyStatus:
        """How far the study is: trials by state, front, and why trials failed."""
        return study_status(self.store, self.name)

    def export(
        self,
        to: str | Path,
        trial: int | TrialRecord | None = None,
        pick: str | None = None,
        where: str | Sequence[str] = (),
        workload: Workload | None = None,
    ) -> ExportedBundle:
        """Write one point as a bundle: policy, the artifact that was measured, weights, reference, card and run.py.

        Files that were not kept are made again from the trial's policy, which takes as long as its compression and recovery did.

        Args:
            to: folder to write; new or empty, parents are made.
            trial: which; without it `pick` chooses from the front.
            pick: a rule of `Study.pick`, the knee by default.
            where: conditions that the picked point has to meet, as of `Study.pick`.
            workload: what the study was searched with, where it was given as an object; only to make files again.

        Raises:
            UserError: a trial and a rule or conditions given, an unknown rule, nothing to export, or `to` cannot be written.
        """
        if trial is not None and (pick is not None or where):
            raise UserError("give a trial, or a rule and conditions to pick by, not both")
        from ..search.trials.remaking import Remaking  # imports torch
        from ..studies.bundles.export import export_bundle

        number = trial.number if isinstance(trial, TrialRecord) else trial
        if where:
            number = self.pick(pick or "knee", where).number
        remaker = Remaking(self.store, self.name, workload)
        exported = export_bundle(self.store, self.name, Path(to), number, pick or "knee", remaker)
        return ExportedBundle(self.name, exported.number, Path(to), exported.remade)

    def verify(self, bundle: str | Path | ExportedBundle, workload: Workload | None = None) -> Verification:
        """Check a bundle that this study made against its card: files, size, accuracy, paired speed-up.

        Args:
            workload: what the study was searched with, where it was given as an object.

        Raises:
            UserError: no bundle, or another study's.
        """
        from ..studies.bundles.bundle import open_bundle  # imports torch
        from ..studies.bundles.judge import judge_of_study

        folder = bundle.folder if isinstance(bundle, ExportedBundle) else Path(bundle)
        return verified(folder, judge_of_study(self.store, self.name, open_bundle(folder), workload))

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self.store!r})"

    def __rich__(self) -> RenderableType:
        from ..studies.reports.report import status_report

        return status_report(self.store, self.name)

    def _repr_html_(self) -> str:
        """The front for a notebook: the objectives of each point, with the status above."""
        status, table = self.status(), self.front()
        title = f"{status.study}: {status.trials} trials, front of {len(table)}, target {status.target}"
        shown: Any = table[["trial", *status.objectives]]
        return f"<p><b>{escape(title)}</b></p>{shown.to_html(index=False)}"


def _conditions(where: str | Sequence[str]) -> list[Constraint]:
    try:
        return [Constraint.parse(text, frozenset(METRICS)) for text in ([where] if isinstance(where, str) else where)]
    except ValueError as error:
        raise UserError(str(error)) from error


def _meets(trial: TrialRecord | Point, conditions: Sequence[Constraint]) -> bool:
    values = {name: measurement.value for name, measurement in trial.measurements.items()}
    return all(c.metric in values and c.violation(values[c.metric]) <= 0 for c in conditions)
