"""A search, as `slimfront search` runs it, of a study file or of a workload with the settings of one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from ..core.defaults import DEFAULT_STORAGE
from ..core.errors import UserError
from ..studies.study_file.load import load_study, study_named
from ..studies.study_file.spec import StudySpec
from .shown import progress_console
from .study import Study

if TYPE_CHECKING:
    from rich.console import Console

    from ..search.events import Listener
    from ..workloads.workload import Workload

CALL = "search()"
"""How errors call the place of a wrong argument, where those of a study file name the file."""

DEFAULTS = {"target": "cpu-openvino", "objectives": ["accuracy_drop", "latency_ms", "artifact_bytes"]}
"""Settings of a search that is given a workload and not a study."""


def search(
    workload_or_study: str | Path | StudySpec | Workload,
    *,
    name: str | None = None,
    target: str | Path | None = None,
    objectives: Sequence[str] | None = None,
    constraints: Sequence[str] | None = None,
    space: Mapping[str, Any] | None = None,
    budget: int | Mapping[str, Any] | None = None,
    workers: int | Literal["auto"] | None = None,
    seed: int | None = None,
    storage: str = DEFAULT_STORAGE,
    artifacts: str | Path | None = None,
    callbacks: Sequence[Listener] = (),
    progress: bool | Console = True,
    started: float | None = None,
    **settings: Any,
) -> Study:
    """Search a workload, or continue a study where it stopped; returns when the budget is spent.

    Where things run. This process proposes policies, stores what is found and, when the search is over, measures the front
    again; the current folder is meanwhile the study file's. With `workers=0`, the default, trials run one after the other in a
    child process on this machine, so that a crash does not end the search; with more, in that many Ray workers: on this machine, or on the cluster that RAY_ADDRESS names. Latency is measured by a process of its own on the target.
    The script that calls this needs no `if __name__ == "__main__":`.

    A workload by name is loaded again by every worker. A `Workload` object is pickled and sent to the workers, classes and
    functions of the main script or of a notebook included; modules of yours that it imports must be importable where workers
    run. On a cluster every worker starts in a copy of the current folder, or of the study file's. The database does not hold the object: to continue such a study, call this again with the same workload.
    Ctrl-C raises KeyboardInterrupt; finished trials are stored, and the same call continues.

    Args:
        workload_or_study: a study file's path, a shipped study's name or a `StudySpec`; or a workload: its name, as a study
            file has it, or a `Workload`.
        name: of the study in the database; a workload's own by default.
        target: a shipped card's name or a card file; "cpu-openvino" by default.
        objectives: 2 to 4 metrics; "accuracy_drop", "latency_ms" and "artifact_bytes" by default.
        constraints: bounds such as "accuracy_drop <= 0.01".
        space: choices by the keys of a study file's `space`; the preset of the model's family by default.
        budget: trials in all, or the keys of a study file's `budget`. Needed for a workload.
        workers: the most Ray workers; "auto" is as many as the cluster, or this machine, has room for. 0 runs without Ray.
        seed: of sampler and recovery.
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.
        artifacts: folder or URL that files of trials are kept in, also of what workers on other machines find; by default what the
            study file names, or where the study has its files by now, or the folder "slimfront-artifacts" in the current one.
        callbacks: functions that are called with every event of the search, such as `slimfront.search.events.TrialFinished`,
            after what it reports is stored; what one of them raises ends the search.
        progress: whether to show progress on stderr, or the console to show it on.
        started: `time.monotonic()` from which a budget of time is counted; the call by default.
        settings: any other key of a study file, such as `sampler`, `rungs`, `recovery` or `quantization`. Given with a study,
            arguments take the place of the file's values, key by key within mappings.

    Returns:
        the study, searched.

    Raises:
        UserError: a wrong argument or study file; the message names the key.
        SearchError: the search could not go on, or found nothing but the uncompressed model.
    """
    started = time.monotonic() if started is None else started
    given: dict[str, Any] = {
        "study": name,
        "target": None if target is None else str(target),
        "objectives": _listed(objectives),
        "constraints": _listed(constraints),
        "space": space,
        "budget": {"trials": budget} if isinstance(budget, int) else budget,
        "workers": workers,
        "seed": seed,
        **settings,
    }
    spec, workload = _spec(workload_or_study, {key: value for key, value in given.items() if value is not None})
    console = progress_console(progress)
    with console.status(Text(f"{spec.study}: loading PyTorch and the runtimes")):
        from ..search.run import run_search  # takes seconds: it imports torch, optuna and ray

    run_search(spec, storage, artifacts, console, started, workload, tuple(callbacks))
    return Study.open(storage, spec.study)


def _listed(values: Sequence[str] | None) -> list[str] | None:
    return [values] if isinstance(values, str) else None if values is None else list(values)


def _spec(source: object, given: Mapping[str, Any]) -> tuple[StudySpec, Workload | None]:
    """What is to be searched, and the workload where it is an object."""
    if isinstance(source, StudySpec):
        return _changed(source, given), None
    if isinstance(source, Path):
        return _changed(load_study(str(source)), given), None
    if isinstance(source, str):
        study = study_named(source)
        return (_of_workload(source, source, given) if study is None else _changed(study, given)), None
    from ..workloads.load import OBJECT  # imports torch
    from ..workloads.workload import Workload

    if not isinstance(source, Workload):
        raise UserError(
            f"{CALL}: needs a study file, a workload's name or a slimfront.Workload, not {type(source).__name__}; "
            "a model needs its data and metric: Workload(model, train, calibration, validation, test, example_input)"
        )
    title = source.name or type(source.model).__name__
    return _of_workload(f"{OBJECT}{title}", title, given), source


def _of_workload(reference: str, title: str, given: Mapping[str, Any]) -> StudySpec:
    """The study of a workload that is given without one."""
    if "budget" not in given:
        raise UserError(f"{CALL}: budget: is missing; give the number of trials, or {{'timeout_s': SECONDS}}")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")
    return StudySpec.from_document({"study": plain, **DEFAULTS, **given, "workload": reference}, CALL, Path.cwd())


def _changed(spec: StudySpec, given: Mapping[str, Any]) -> StudySpec:
    """`spec` with what is given in place of its own, key by key within mappings."""
    if not given:
        return spec
    document = spec.model_dump(mode="json", exclude_unset=True)  # a preset fills in what is not set
    for key, value in given.items():
        own = document.get(key)
        document[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, Mapping) else value
    StudySpec.from_document(document, CALL, spec.base_folder)  # or an error would blame the file
    return StudySpec.from_document(document, spec.file or CALL, spec.base_folder)
