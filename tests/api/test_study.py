"""A study read from Python: tables, single points and texts, of a database that a search could have left."""

import json
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

import pytest
import slimfront
from rich.console import Console
from slimfront.core.errors import UserError
from slimfront.core.measurement import Measurement
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

SPEC = {
    "study": "demo",
    "workload": "digits",
    "target": "cpu-openvino",
    "objectives": ["accuracy_drop", "latency_ms"],
    "budget": {"trials": 10},
    "space": {"weight_bits": [4, 8, 32]},
}
TRIALS = {0: (0.0, 2.0), 1: (0.01, 1.0), 2: (0.02, 0.5), 3: (0.3, 0.9)}
"""Trial -> accuracy drop and milliseconds; the last is beaten by two others."""


def measured(drop: float, milliseconds: float) -> list[Measurement]:
    return [
        Measurement("accuracy_drop", drop, drop - 0.005, drop + 0.005, "fraction", 360, "newcombe paired"),
        Measurement("latency_ms", milliseconds, milliseconds * 0.99, milliseconds * 1.01, "ms", 240, "paired"),
    ]


def add_study(store: Store, name: str) -> None:
    store.create_study(StudySpec.from_document({**SPEC, "study": name}, "demo.yaml", Path()), "fingerprint", {}, {})
    store.set_baseline(name, measured(0.0, 2.0), "cpu-openvino")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'slimfront.db'}"
    with Store(url) as store:
        add_study(store, "demo")
        for number, (drop, milliseconds) in TRIALS.items():
            store.start_trial("demo", number, Policy(layers={"conv": LayerPolicy(weight_bits=(8, 6, 5, 4)[number])}))
            store.add_measurements("demo", number, measured(drop, milliseconds), 0, "cpu-openvino")
            store.finish_trial("demo", number, "complete", None, {})
        store.start_trial("demo", 4, Policy(layers={"conv": LayerPolicy(weight_bits=3)}))
        store.finish_trial("demo", 4, "failed", "out of memory")
        store.save_front("demo", [0, 1, 2], 3.0)
    return url


@pytest.fixture
def study(storage: str) -> slimfront.Study:
    return slimfront.Study.open(storage, "demo")


def test_the_only_study_needs_no_name(storage: str) -> None:
    assert slimfront.Study.open(storage).name == "demo"
    with Store(storage) as store:
        add_study(store, "other")
    with pytest.raises(UserError, match=r"has 2 studies: name one of demo, other$"):
        slimfront.Study.open(storage)


def test_what_is_not_there_is_an_error_of_slimfront_s_own(tmp_path: Path, study: slimfront.Study) -> None:
    calls: list[Callable[[], object]] = [
        lambda: slimfront.Study.open(f"sqlite:///{tmp_path / 'none.db'}", "demo"),
        lambda: slimfront.Study.open(study.store.url, "demmo"),
        lambda: study.trial(99),
        lambda: study.pick("quickest"),
        lambda: study.best("latency"),
        lambda: study.best("latency_ms", where="accuracy_drop below 1"),
        lambda: study.best("latency_ms", where="accuracy_drop <= -1"),
        lambda: study.export(tmp_path / "bundle", trial=1, pick="knee"),
        lambda: study.export(tmp_path / "bundle", trial=1, where="accuracy_drop <= 1"),
        lambda: study.export(tmp_path / "bundle", where="accuracy_drop <= -1"),
        lambda: study.export(tmp_path / "bundle", trial=4),
        lambda: study.verify(tmp_path),
    ]
    for call in calls:
        with pytest.raises(slimfront.SlimfrontError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_trials_are_a_table_with_a_row_each(study: slimfront.Study) -> None:
    trials = study.trials
    assert list(trials["trial"]) == [0, 1, 2, 3, 4]
    assert list(trials["state"]) == ["complete"] * 4 + ["failed"]
    assert trials["reason"][4] == "out of memory"
    assert list(trials["latency_ms"][:4]) == [milliseconds for _, milliseconds in TRIALS.values()]
    assert trials["accuracy_drop_high"][1] == pytest.approx(0.015)


def test_the_front_is_a_table_best_first(study: slimfront.Study) -> None:
    front = study.front()
    assert list(front["trial"]) == [0, 1, 2]
    assert list(front.columns[:5]) == [
        "trial",
        "policy_digest",
        "accuracy_drop",
        "accuracy_drop_low",
        "accuracy_drop_high",
    ]


def test_best_is_the_best_value_among_those_that_meet_the_conditions(study: slimfront.Study) -> None:
    assert study.best("latency_ms").number == 2
    assert study.best("latency_ms", where="accuracy_drop <= 0.01").number == 1
    assert study.best("accuracy_drop", where=["latency_ms < 2", "latency_ms > 0.5"]).number == 1
    with pytest.raises(UserError, match=r"^demo: none of 4 complete trials has latency_ms and accuracy_drop < 0$"):
        study.best("latency_ms", where="accuracy_drop < 0")


def test_a_rule_picks_among_the_points_that_meet_the_conditions(study: slimfront.Study) -> None:
    assert study.pick("fastest", where="accuracy_drop <= 0.01").number == 1
    assert study.pick("fastest", where=["accuracy_drop <= 0.01", "latency_ms > 1.5"]).number == 0
    with pytest.raises(UserError, match=r"^demo: none of 3 points of the front has accuracy_drop < 0$"):
        study.pick(where="accuracy_drop < 0")


def test_a_rule_picks_from_the_front(study: slimfront.Study) -> None:
    assert study.pick("fastest").number == 2
    assert study.pick().number in (0, 1, 2)
    assert study.policy(study.pick("fastest")) == study.policy(2) == Policy(layers={"conv": LayerPolicy(weight_bits=5)})


def test_status_is_a_value_and_a_document(study: slimfront.Study) -> None:
    status = study.status()
    assert (status.trials, status.front, status.created.tzinfo) == (5, [0, 1, 2], UTC)
    assert [(reason.trials, reason.reason) for reason in status.reasons] == [(1, "out of memory")]
    document = json.loads(json.dumps(status.to_dict()))
    assert document["reasons"] == [{"trials": 1, "state": "failed", "reason": "out of memory"}]
    assert document["created"] == status.created.isoformat()


def test_a_study_shows_itself_in_a_terminal_and_in_a_notebook(study: slimfront.Study) -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(study)
    assert "4 complete" in captured.get()
    html = study._repr_html_()
    assert html.startswith("<p><b>demo: 5 trials, front of 3, target cpu-openvino</b></p>")
    assert "<th>latency_ms</th>" in html
    assert repr(study).startswith("Study('demo', Store('sqlite:///")


def test_an_audit_is_a_table_a_document_and_a_figure(study: slimfront.Study) -> None:
    for number, (drop, milliseconds) in TRIALS.items():
        flops = Measurement.exact("flops", int(1e6 * milliseconds), "fvcore")
        study.store.add_measurements("demo", number, [*measured(drop, milliseconds), flops], 0, "cpu-openvino")
    audit = study.audit()
    assert [(found.proxy, found.spearman) for found in audit.proxies] == [("flops", 1.0)]
    assert audit.to_dict()["proxies"][0]["n"] == 4
    assert "flops" in str(audit)
    assert len(audit.figure().data) == 2


def test_an_audit_of_too_few_trials_is_refused(study: slimfront.Study) -> None:
    add_study(study.store, "new")
    with pytest.raises(UserError, match=r"^0 trials have a measured latency"):
        slimfront.Study(study.store, "new").audit()


def test_the_studies_of_a_database_are_listed_oldest_first(storage: str, tmp_path: Path) -> None:
    with Store(storage) as store:
        add_study(store, "another")
    found = slimfront.studies(storage)
    assert [(each.study, each.trials, each.front_points) for each in found.studies] == [
        ("demo", 5, 3),
        ("another", 0, 0),
    ]
    with pytest.raises(UserError, match="no such database"):
        slimfront.studies(f"sqlite:///{tmp_path / 'none.db'}")


def test_a_profile_that_is_not_measured_saves_the_card_it_read(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'none.db'}"
    profile = slimfront.profile("cpu-openvino", measure=False, storage=storage)
    profile.save(tmp_path / "mine.yaml")
    again = slimfront.profile(tmp_path / "mine.yaml", measure=False, storage=storage)
    assert again.target.runtime == profile.target.runtime == "openvino"
    assert profile.target.name in [target.name for target in slimfront.profiles(storage).targets]
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match="nowhere"):
        profile.save(tmp_path / "nowhere" / "card.yaml")


def test_the_dashboard_of_an_unknown_study_is_refused(storage: str) -> None:
    with pytest.raises(UserError, match="no study 'demmo'"):
        slimfront.dashboard(storage, "demmo", progress=False)
