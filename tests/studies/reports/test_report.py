"""Reports over a real database, read as a terminal of 100 columns shows them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from slimfront.core.errors import StoreError
from slimfront.core.measurement import Measurement
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.studies.analysis.budget_rules import ended
from slimfront.studies.reports.json_documents import study_front_document
from slimfront.studies.reports.report import front_table, status_report, studies_table, trial_report
from slimfront.studies.reports.status import study_summaries
from slimfront.studies.store import tables
from slimfront.studies.store.records import INTERRUPTED, Violation
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from slimfront.studies.terminal import sparkline
from sqlalchemy import Engine, delete, event, text

POLICY = Policy(
    width=0.75,
    channels={"stem": 0.5},
    layers={"stem": LayerPolicy(8, 8, "2:4"), "fc[0]": LayerPolicy(weight_bits=4, sparsity=0.5)},
    recovery=Recovery(epochs=2),
)
BOUND = "accuracy_drop <= 0.05"


def shown(renderable: RenderableType) -> list[str]:
    """Lines of a terminal 100 columns wide, their ends stripped."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


def line_with(lines: list[str], *words: str) -> str:
    """The only line that holds all words."""
    found = [line for line in lines if all(word in line for word in words)]
    assert len(found) == 1, (words, lines)
    return found[0]


def measured(drop: float, latency_ms: float, noisy: bool = False) -> list[Measurement]:
    return [
        Measurement("accuracy_drop", drop, drop - 0.002, drop + 0.004, "fraction", 360, "newcombe paired"),
        Measurement("latency_ms", latency_ms, latency_ms * 0.99, latency_ms * 1.01, "ms", 240, "paired", noisy),
        Measurement("accuracy", 0.98 - drop, 0.9, 0.99, "fraction", 360, "wilson"),
        Measurement("speedup", 2 / latency_ms, 1.9 / latency_ms, 2.1 / latency_ms, "ratio", 240, "paired-median"),
        Measurement.exact("artifact_bytes", 123_456, "file size"),
        Measurement.exact("flops", 2_345_678, "fvcore"),
    ]


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    with Store(sqlite_url) as store:
        yield store


@pytest.fixture
def new_study(store: Store, make_spec: Callable[..., StudySpec]) -> Store:
    """The study "demo" with a baseline and no trial."""
    store.create_study(make_spec(constraints=[BOUND], seed=7), "fingerprint", {"python": "3.11"}, {"cpu": "abacus"})
    store.set_baseline("demo", measured(0.0, 2.0), "cpu-openvino")
    return store


@pytest.fixture
def study(new_study: Store) -> Store:
    """Trials 1 and 2 on the front, 0 dominated, 3 and 4 infeasible, 5 and 6 failed, 7 interrupted, 8 retries 7 and runs."""
    for number, (drop, latency) in enumerate([(0.02, 1.5), (0.001, 1.0), (0.04, 0.5), (0.09, 0.4), (0.06, 0.4)]):
        new_study.start_trial("demo", number, POLICY, worker="host-1/42")
        new_study.add_measurements("demo", number, measured(drop, latency, noisy=number == 2), 1, "cpu-openvino")
        excess = drop - 0.05
        state = "infeasible" if excess > 0 else "complete"
        violation, reason = Violation("accuracy_drop", BOUND, excess), f"violates {BOUND}" if excess > 0 else None
        new_study.finish_trial("demo", number, state, reason, [violation])
        if number < 2:
            new_study.save_front("demo", [number], hypervolume=0.01 * (number + 1))
    new_study.save_front("demo", [1, 2], hypervolume=0.04)
    for number, reason in [(5, "ValueError: shape [3, 8]"), (6, "ValueError: shape [4, 16]"), (7, INTERRUPTED)]:
        new_study.start_trial("demo", number, POLICY)
        new_study.finish_trial("demo", number, "interrupted" if reason is INTERRUPTED else "failed", reason)
    new_study.start_trial("demo", 8, POLICY, retry_of=7)
    return new_study


def test_studies_lists_trials_against_budget_and_front(study: Store) -> None:
    line = line_with(shown(studies_table(study_summaries(study))), "demo")
    # Eight trials have ended; trial 7 was interrupted and so does not count.
    assert line.split()[:7] == ["demo", "digits", "cpu-openvino", "7", "of", "10", "2"]


def test_studies_of_an_empty_database_say_what_makes_one(store: Store) -> None:
    assert "slimfront search" in line_with(shown(studies_table(study_summaries(store))), "no study")


def test_status_counts_states_retries_and_budget(study: Store) -> None:
    lines = shown(status_report(study, "demo"))
    assert line_with(lines, "trials  ", "running").endswith(
        "1 running, 3 complete, 2 infeasible, 2 failed, 1 interrupted; retries among them: 1"
    )
    assert line_with(lines, "budget").endswith("7 of 10 trials")
    assert "seed 7" in line_with(lines, "search ", "policy")


def test_status_shows_the_growth_of_the_front(study: Store) -> None:
    lines = shown(status_report(study, "demo"))
    assert "2 points, hypervolume 0.04" in line_with(lines, "front  ", "hypervolume")
    # Snapshots after 1, 2 and 5 of 8 trials: hypervolumes 0.01, 0.02 and 0.04, a third of the way up and the top.
    growth = "▁▃▃▃████  0.01 at trial 1, last change at trial 5 of 8"
    assert line_with(lines, "last change").endswith(growth)


def test_status_groups_reasons_alike_but_for_their_numbers(study: Store) -> None:
    lines = shown(status_report(study, "demo"))
    assert line_with(lines, "ValueError").split(maxsplit=2) == ["2", "failed", "ValueError: shape [3, 8]"]
    assert line_with(lines, "violated; the nearest by 0.0100").split()[:2] == ["2", "infeasible"]


def test_status_names_the_next_commands(study: Store) -> None:
    lines = shown(status_report(study, "demo"))
    for command in ("slimfront search STUDY.yaml", "slimfront front demo", "slimfront export demo --to DIR"):
        assert line_with(lines, command)


def test_status_of_a_new_study_offers_neither_front_nor_export(new_study: Store) -> None:
    lines = shown(status_report(new_study, "demo"))
    assert "none yet: no trial has ended" in line_with(lines, "front  ")
    assert not any("slimfront export" in line for line in lines)


def test_trial_shows_its_policy_per_layer(study: Store) -> None:
    lines = shown(trial_report(study, "demo", 1))
    assert line_with(lines, "stem", "2:4").split() == ["stem", "8", "8", "2:4", "not", "reported"]
    assert line_with(lines, "fc[0]").split() == ["fc[0]", "4", "32", "0.5", "not", "reported"]
    # Half of the three quarters that the width left.
    assert line_with(lines, "stem", "0.375").split() == ["stem", "0.5", "0.375"]
    assert "0.75 of every channel group kept" in line_with(lines, "width  ")
    assert "2 epochs at learning rate 0.01" in line_with(lines, "recovery")
    assert "host-1/42" in line_with(lines, "worker")


def test_trial_shows_every_measurement_with_interval_unit_n_method_and_rung(study: Store) -> None:
    study.add_measurements("demo", 2, measured(0.039, 0.55)[:1], 2, "cpu-openvino")
    lines = shown(trial_report(study, "demo", 2))
    assert line_with(lines, "accuracy_drop ", "replaced").split()[:6] == [
        "accuracy_drop", "0.0400", "0.0380", "0.0440", "fraction", "360",
    ]  # fmt: skip
    assert line_with(lines, "accuracy_drop ", "0.0390").split()[-3:] == ["newcombe", "paired", "2"]
    assert line_with(lines, "latency_ms").split()[-1] == "noisy"
    assert line_with(lines, "artifact_bytes").split() == [
        "artifact_bytes",
        "123,456",
        "bytes",
        "1",
        "file",
        "size",
        "1",
    ]


def test_trial_tells_reason_and_constraints(study: Store) -> None:
    lines = shown(trial_report(study, "demo", 3))
    assert line_with(lines, "state").endswith(f"infeasible: violates {BOUND}")
    assert line_with(lines, "violated by").endswith("0.0400")
    assert "0.0300 to spare" in line_with(shown(trial_report(study, "demo", 0)), "met,")


def test_failed_trial_keeps_brackets_in_its_reason(study: Store) -> None:
    lines = shown(trial_report(study, "demo", 5))
    assert line_with(lines, "state").endswith("failed: ValueError: shape [3, 8]")
    assert "Nothing was measured." in lines


def test_retry_names_the_trial_it_repeats(study: Store) -> None:
    assert line_with(shown(trial_report(study, "demo", 8)), "retry of").endswith("trial 7")


def test_uncompressed_trial_says_so(new_study: Store) -> None:
    new_study.start_trial("demo", 0, Policy())
    assert "all at full precision" in line_with(shown(trial_report(new_study, "demo", 0)), "layers")


def test_front_shows_objectives_first_and_the_baseline_on_top(study: Store) -> None:
    lines = shown(front_table(study, "demo"))
    header = next(line for line in lines if line.lstrip().startswith("trial"))
    assert " ".join(header.split()) == "trial accuracy drop latency ms accuracy speedup artifact bytes flops"
    row = lines.index(header) + 2
    assert lines[row].split() == ["baseline", "0.0000", "2.000", "0.9800", "1.00x", "123.5", "kB", "2.35", "M"]
    assert lines[row + 1].split()[:6] == ["*", "1", "0.0010", "±0.0040", "1.000", "±0.01"]
    assert lines[row + 2].split()[:6] == ["2", "0.0400", "±0.0040", "~", "0.5000", "±0.005"]


def test_front_explains_its_marks_only_where_they_occur(study: Store) -> None:
    assert "protocol" in line_with(shown(front_table(study, "demo")), "~ noisy")
    study.save_front("demo", [1], hypervolume=0.02)
    lines = shown(front_table(study, "demo"))
    assert line_with(lines, "* the knee")
    assert not any("~" in line for line in lines)


@pytest.mark.parametrize(
    "objectives",
    [
        pytest.param(["cross_entropy", "latency_ms", "accuracy_drop", "speedup"], id="uncertain"),
        pytest.param(["cross_entropy", "bops", "packed_bytes", "parameters"], id="none shown anyway"),
    ],
)
def test_front_of_four_objectives_fits_the_terminal(
    store: Store, make_spec: Callable[..., StudySpec], objectives: list[str]
) -> None:
    store.create_study(make_spec(objectives=objectives), "fingerprint", {}, {})
    figures = [*measured(0.0123, 0.01234, noisy=True), Measurement("cross_entropy", 0.1234, 0.1, 0.15, "nats", 360)]
    figures += [Measurement.exact(name, 12_345_678, "count") for name in ("bops", "packed_bytes", "parameters")]
    store.set_baseline("demo", figures, "cpu-openvino")
    store.start_trial("demo", 12345, POLICY)
    store.add_measurements("demo", 12345, figures)
    store.finish_trial("demo", 12345, "complete")
    store.save_front("demo", [12345], hypervolume=1.0)
    lines = shown(front_table(store, "demo"))
    assert not any("…" in line for line in lines)
    assert line_with(lines, "12345", "0.1234", "0.01234", "162.07x", "123.5 kB")


def test_study_without_front_says_why(study: Store) -> None:
    study.save_front("demo", [], hypervolume=0.0)
    text = " ".join(shown(front_table(study, "demo")))
    assert "demo has no front yet: no trial of 8 met every constraint" in text
    assert f"most often violated: {BOUND}, by 2, the nearest by 0.0100" in text


def test_front_json_is_read_back_best_first(study: Store) -> None:
    document = study_front_document(study, "demo")
    assert [point["trial"] for point in document["points"]] == [1, 2]
    assert document["points"][0]["values"] == {"accuracy_drop": 0.001, "latency_ms": 1.0}
    assert document["baseline"]["measurements"]["latency_ms"]["value"] == 2.0


def test_the_document_of_a_study_without_front_has_no_points(new_study: Store) -> None:
    assert study_front_document(new_study, "demo")["points"] == []


@pytest.mark.parametrize("report", [status_report, front_table, study_front_document])
def test_unknown_study_is_one_line(study: Store, report: Callable[[Store, str], object]) -> None:
    with pytest.raises(StoreError, match="no study 'demmo' in the database; did you mean demo") as error:
        report(study, "demmo")
    assert "\n" not in str(error.value)


def test_unknown_trial_is_one_line(study: Store) -> None:
    with pytest.raises(StoreError, match="no trial 99"):
        trial_report(study, "demo", 99)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        pytest.param([], "", id="nothing"),
        pytest.param([None, None], "", id="no front yet"),
        pytest.param([None, 1.0, 1.0], " ██", id="constant"),
        pytest.param([0.0, 1.0, 7.0], "▁▂█", id="own range"),
    ],
)
def test_sparkline(values: list[float | None], line: str) -> None:
    assert sparkline(values) == line


# Texts from a database, and many trials


def test_what_an_older_version_stored_is_shown_as_text(study: Store) -> None:
    with study._database.unguarded() as session:
        session.execute(
            text("UPDATE slimfront_trial SET reason = :reason WHERE number IN (5, 6)"),
            {"reason": "boom \x1b[31m :x: [red]/[/red] \r" + "y" * 100_000},
        )
    for report in (status_report(study, "demo"), trial_report(study, "demo", 5)):
        lines = shown(report)
        assert r"boom \x1b[31m :x: [red]/[/red]" in " ".join(lines)
        assert len(" ".join(lines)) < 20_000


def test_lists_read_no_policy_and_no_measurement_of_a_trial_but_those_of_the_front(study: Store) -> None:
    asked: list[str] = []

    def hear(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "slimfront_front_member" not in statement:  # which a verdict is passed on
            asked.append(statement)

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        shown(studies_table(study_summaries(study)))
        shown(status_report(study, "demo"))
    finally:
        event.remove(Engine, "before_cursor_execute", hear)
    assert asked
    assert [s for s in asked if "slimfront_trial.policy" in s] == []
    assert [
        s for s in asked if "slimfront_measurement.value" in s and "trial_id IS NULL" not in s
    ] == []  # the baseline's


STATES_AND_REASONS = st.sampled_from(
    [
        ("running", None), ("complete", None), ("infeasible", "violates it"), ("pruned", "and so on"),
        ("failed", "ValueError"), ("interrupted", INTERRUPTED),
    ]
)  # fmt: skip
TRIALS = st.lists(st.tuples(STATES_AND_REASONS, st.booleans(), st.none() | st.integers(0, 6)), max_size=7)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TRIALS)
def test_the_database_counts_what_the_budget_paid_for(new_study: Store, trials: list) -> None:
    with new_study._database.unguarded() as session:
        session.execute(delete(tables.Trial))
        study_id = session.query(tables.Study.id).scalar()
        for number, ((state, reason), is_uncompressed, retry_of) in enumerate(trials):
            policy = Policy() if is_uncompressed else POLICY
            about = {"number": number, "state": state, "reason": reason, "retry_of": retry_of, "study_id": study_id}
            session.add(tables.Trial(policy=policy.to_json(), digest=policy.digest, **about))
    assert new_study.paid_trials().get("demo", 0) == ended(new_study.trials("demo"))
    assert ended(new_study.trial_summaries("demo")) == ended(new_study.trials("demo"))
