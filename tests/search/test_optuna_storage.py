"""Optuna's storage as the driver uses it: read by column, written together, the same as Optuna's own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from slimfront.search.optuna.storage import StudyStorage, open_storage
from slimfront.search.optuna.trial_rows import read_trials
from slimfront.studies.store.store import Store
from sqlalchemy import event

CHOICES = {f"layer{index}.weight_bits": (4, 8, 32) for index in range(12)}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    with Store(f"sqlite:///{tmp_path}/study.db") as store:
        yield StudyStorage(open_storage(store))


def asked(study: optuna.Study, storage: StudyStorage) -> optuna.Trial:
    trial = study.ask()
    with storage.together():
        for name, choices in CHOICES.items():
            trial.suggest_categorical(name, choices)
        trial.set_user_attr("digest", f"of {trial.number}")
    return trial


def as_optuna_reads(storage: StudyStorage) -> list[optuna.trial.FrozenTrial]:
    return RDBStorage(str(storage._backend.engine.url)).get_all_trials(1)


def test_what_was_written_together_reads_as_optuna_reads_it(storage: StudyStorage) -> None:
    study = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    study.enqueue_trial(dict.fromkeys(CHOICES, 8), user_attrs={"retry_of": 3})
    first, second, third = (asked(study, storage) for _ in range(3))
    first.set_constraint("size <= 3", -1.0)
    study.tell(first, [1.0, float("inf")])
    study.tell(second, state=TrialState.PRUNED)
    study.enqueue_trial({})
    theirs = as_optuna_reads(storage)
    assert storage.get_all_trials(1) == theirs == read_trials(storage._backend.engine, 1)
    assert [trial.state.name for trial in theirs] == ["COMPLETE", "PRUNED", "RUNNING", "WAITING"]
    assert storage.get_trial(third._trial_id) == theirs[2]
    for state in TrialState:
        assert storage.get_all_trials(1, states=(state,)) == [trial for trial in theirs if trial.state == state]


def test_nothing_is_written_of_what_an_exception_ended(storage: StudyStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = asked(study, storage)
    with contextlib.suppress(RuntimeError), storage.together():
        trial.set_user_attr("policy", "{}")
        raise RuntimeError
    assert as_optuna_reads(storage)[0].user_attrs == {"digest": "of 0"}
    trial.set_user_attr("policy", "[]")
    assert as_optuna_reads(storage)[0].user_attrs["policy"] == "[]"


def test_a_study_with_other_choices_is_refused_as_optuna_refuses_it(storage: StudyStorage) -> None:
    study = optuna.create_study(storage=storage)
    asked(study, storage)
    trial = study.ask()
    with pytest.raises(ValueError, match="dynamic value space"), storage.together():
        trial.suggest_categorical("layer0.weight_bits", (2, 8))


def test_statements_of_a_trial_do_not_grow_with_its_knobs_nor_with_the_study(storage: StudyStorage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    counts = []

    def counted(*_: object) -> None:
        counts[-1] += 1

    event.listen(storage._backend.engine, "before_cursor_execute", counted)
    for number in range(30):
        counts.append(0)
        study.tell(asked(study, storage), float(number))
    assert counts[-1] == counts[5] < 4 * len(CHOICES)
