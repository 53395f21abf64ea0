"""A worker on a node that shares no folder with the driver: here, in a copy of the study file's folder, with the driver's files hidden."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import torch
from slimfront.search.driver import Search
from slimfront.search.execution import ray_worker
from slimfront.search.execution.base import worker_setup
from slimfront.search.execution.ray_worker import Ready
from slimfront.search.execution.shipment import Shipment, delivered, own_folder, sent_with
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.files.remade import file_digest
from slimfront.studies.files.study_files import StudyFiles
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from slimfront.workloads.load import working_in

TINY = Path(__file__).parents[1] / "tiny_workload.py"
RELATIVE = """
from dataclasses import replace
from pathlib import Path
import torch
from tiny_workload import workload as tiny


def workload():
    model = torch.load("model.pt", weights_only=False)
    return replace(tiny(), model=torch.load(Path(__file__).parent / "model.pt", weights_only=False))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_worker_without_the_drivers_files_does_a_trial_of_a_workload_with_relative_paths(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_worker, "ignore_interrupts", lambda: None)  # of this process
    study = tmp_path / "study"
    study.mkdir()
    shutil.copy(TINY, study)
    (study / "net.py").write_text(RELATIVE)
    with working_in(study):
        from tiny_workload import workload as tiny

        torch.save(tiny().model, study / "model.pt")
    spec = tiny_spec(workload="net.py:workload")
    spec._base_folder = study
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        with working_in(study):
            search = Search(prepare(spec), store, tmp_path / "artifacts")
            sent = cloudpickle.dumps((worker_setup(search, 1), Shipment.of(search)))
        node = tmp_path / "node"
        study.rename(node)
        (tmp_path / "artifacts").rename(tmp_path / "hidden")
        setup, shipment = cloudpickle.loads(sent)
        monkeypatch.chdir(node)
        worker = ray_worker.RayWorker()
        ready = worker.start(setup, 1, shipment)
        assert isinstance(ready, Ready), ready
        assert ready.folder is not None
        proposal = search.propose()
        assert proposal is not None
        answer = worker.begin(proposal, *sent_with(proposal))
        while (stage := delivered(answer.stage, answer.files, proposal.folder)) is not None:
            assert search.advance(proposal.number, stage), stage.reason
            answer = worker.proceed()
        search.finish(proposal.number)
        (trial,) = store.trials(spec.study)
        assert (trial.state, answer.broken) == ("complete", None)
        for artifact in store.artifacts(spec.study, trial.number):
            path = StudyFiles(store, spec.study).found(trial.number, artifact.kind)
            assert path is not None
            assert file_digest(path) == artifact.sha256
        worker.close()
        assert not ready.folder.exists()


def test_the_files_of_processes_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, mine = tmp_path / "slimfront-worker-4194304-x", own_folder()  # beyond the largest process id
    dead.mkdir()
    assert own_folder() != mine
    assert mine.is_dir()
    assert not dead.exists()
