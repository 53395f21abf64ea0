"""A search whose worker is killed in the middle of a recovery, or that is interrupted there, goes on from the checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from slimfront.search.driver import Search
from slimfront.search.execution.local import run_local
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

SLOW = Path(__file__).with_name("slow_workload.py")
EPOCHS, BATCH, SAMPLES = 6, 16, 128
PROCESSES, AT_START = 3, 2
"""Samples that loading the workload reads in each process, to look at them."""


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings", "interruptible")
def test_a_recovery_goes_on_where_its_worker_was_killed_or_the_search_interrupted(
    tiny_spec: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are those of a search that nothing disturbed, bit for bit, and little is trained twice."""
    monkeypatch.setenv("SLOW_DRIVER", str(os.getpid()))
    monkeypatch.setenv("SLOW", str(tmp_path))
    spec = tiny_spec(
        workload=f"{SLOW}:workload",
        space={
            "granularity": "model",
            "weight_bits": [8],
            "activation_bits": [8],
            "recovery_epochs": [EPOCHS, 2 * EPOCHS],
        },
        recovery={"batch_size": BATCH, "learning_rate": 0.01},
        budget={"trials": 1, "checkpoint_s": 0.001},
        sensitivity=False,
    )
    prepared = prepare(spec)

    def searched(name: str, isolated: bool) -> tuple[list[str], str]:
        """How trials ended, and the weights of the last one."""
        with Store(f"sqlite:///{tmp_path / name}.db") as store:
            try:
                run_local(Search(prepared, store, tmp_path / name), isolated)
            except KeyboardInterrupt:
                run_local(Search(prepared, store, tmp_path / name), isolated)
            trials = store.trials("tiny")
            files = {file.kind: file.sha256 for file in store.artifacts("tiny", trials[-1].number)}
        assert not list((tmp_path / name / "tiny" / "checkpoints").glob("*"))
        return [trial.state.value for trial in trials], files["weights"]

    states, weights = searched("undisturbed", isolated=False)
    assert states == ["complete"]
    (tmp_path / "interrupt").write_text("200")
    (tmp_path / "kill").write_text("500")
    assert searched("disturbed", isolated=True) == (["interrupted", "interrupted", "complete"], weights)
    again = (tmp_path / "read").stat().st_size - EPOCHS * SAMPLES - PROCESSES * AT_START
    assert (
        0 < again <= 2 * 2 * BATCH
    )  # each time the batch at hand, and at most the one that the next checkpoint would have had
