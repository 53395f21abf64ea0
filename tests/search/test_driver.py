"""The driver, on a real network, database and runtime, in this process."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console
from slimfront.core.errors import StoreError, StudyFileError
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.hardware_profiles.cards.target import card_text, load_target
from slimfront.hardware_profiles.profiling.fingerprint import machine
from slimfront.search.driver import Search
from slimfront.search.execution.local import run_local
from slimfront.search.optuna.policy_sampler import PolicySampler
from slimfront.search.optuna.sampler_factory import make_sampler
from slimfront.search.run import _warn_of_saturation
from slimfront.search.sole_driver import sole_driver
from slimfront.search.terminal import SearchProgress
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.search.trials.worker import Stage
from slimfront.studies.analysis.front import Objective, Point, dominates
from slimfront.studies.files.executed import executed_precisions
from slimfront.studies.files.study_files import StudyFiles
from slimfront.studies.reports.notes import study_note
from slimfront.studies.reports.report import status_report
from slimfront.studies.store.records import INTERRUPTED
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timings")]

Spec = Callable[..., StudySpec]


@pytest.fixture
def store(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        yield opened


def searched(prepared: PreparedStudy, store: Store, tmp_path: Path) -> Search:
    search = Search(prepared, store, tmp_path / "artifacts")
    run_local(search)
    return search


def optuna_states(store: Store, study: str = "tiny") -> list[str]:
    loaded = optuna.load_study(study_name=study, storage=store.url)
    return [trial.state.name for trial in loaded.get_trials() if trial.state.name != "WAITING"]


def test_a_search_stores_every_number_with_its_origin(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    search = searched(prepare(tiny_spec()), store, tmp_path)
    trials = store.trials("tiny")
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert trials[0].policy.is_uncompressed
    names = {"accuracy", "accuracy_drop", "flops", "bops", "parameters", "artifact_bytes", "latency_ms", "speedup"}
    files = StudyFiles(store, "tiny")
    for trial in trials:
        assert names <= set(trial.measurements)
        for record in store.measurement_history("tiny", trial.number):
            assert record.target == "cpu-openvino"
            assert record.measurement.low <= record.measurement.value <= record.measurement.high
        model = files.newest(trial.number)["model"]
        assert model.bytes == trial.measurements["artifact_bytes"].value
        if trial.number in {point.trial for point in search.front}:
            assert files.path(model).stat().st_size == model.bytes
        else:
            assert model.removed_at is not None
    assert store.current_front("tiny").members == tuple(sorted(point.trial for point in search.front))
    assert optuna_states(store) == ["COMPLETE"] * 4


def test_front_points_do_not_dominate_each_other(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    searched(prepare(tiny_spec(budget={"trials": 6})), store, tmp_path)
    objectives = [Objective.of("accuracy_drop"), Objective.of("latency_ms")]
    points = [Point.of(trial, objectives) for trial in store.front_trials("tiny")]
    assert points
    assert not any(dominates(a, b, objectives) for a in points for b in points if a is not b)


def test_an_early_violation_ends_the_trial_before_it_is_scored(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    searched(prepare(tiny_spec(constraints=["parameters <= 1"])), store, tmp_path)
    uncompressed, *trials = store.trials("tiny")
    assert uncompressed.state == "infeasible"  # measured in full, as the baseline
    assert {trial.state for trial in trials} == {"infeasible"}
    assert all("accuracy" not in trial.measurements and "latency_ms" not in trial.measurements for trial in trials)
    assert trials[0].reason.startswith("violates parameters <= 1: ")
    assert store.current_front("tiny") is None
    assert set(optuna_states(store)[1:]) == {"PRUNED"}  # samplers learn from pruned trials with constraints


def test_an_infeasible_trial_that_was_scored_keeps_its_values(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    prepared = prepare(tiny_spec(constraints=["accuracy_drop <= -1"]))
    searched(prepared, store, tmp_path)
    assert {trial.state for trial in store.trials("tiny")} == {"infeasible"}
    study = optuna.load_study(study_name="tiny", storage=store.url)
    trial = study.get_trials()[0]
    assert trial.state.name == "COMPLETE"
    assert trial.constraints["accuracy_drop <= -1"] > 0
    assert trial.system_attrs["constraints"][0] > 0  # what the dashboard greys by
    sampler = make_sampler(prepared, {"accuracy": 0.9, "accuracy_drop": 0.0, "latency_ms": 1.0}, 4)
    assert isinstance(sampler, PolicySampler)
    # The drop is an objective, and what the dashboard greys by is read back as a constraint "0".
    assert set(trial.constraints) == {"0", "accuracy_drop <= -1"}
    assert set(trial.constraints) <= sampler.implied


def test_a_failing_trial_is_a_row_with_its_reason_and_the_search_goes_on(
    tiny_spec: Spec, store: Store, tmp_path: Path
) -> None:
    space = {"granularity": "model", "channel_sparsity": [0, 0.5], "recovery_epochs": [0, 1]}
    searched(prepare(tiny_spec(workload_options={"broken_loss": True}, space=space)), store, tmp_path)
    states = [trial.state for trial in store.trials("tiny")]
    assert states[0] == "complete"
    failed = store.trials("tiny", "failed")
    assert failed
    assert failed[0].reason == "ZeroDivisionError: no such luck"
    assert {"flops", "speedup", "accuracy"} <= set(failed[0].measurements)  # what was made before is kept
    assert len(states) == 4


def test_policies_are_never_tried_twice(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    space = {"granularity": "model", "weight_bits": [8, 32], "activation_bits": [8, 32]}
    search = searched(prepare(tiny_spec(space=space, budget={"trials": 50})), store, tmp_path)
    digests = [trial.digest for trial in store.trials("tiny")]
    assert len(digests) == len(set(digests)) == 4  # two knobs of two choices: the space is exhausted
    assert search.is_over


@pytest.mark.parametrize("sampler", ["policy", "tpe", "nsgaii", "random"])
def test_every_sampler_tries_every_policy_of_a_small_space_once(
    sampler: str, tiny_spec: Spec, store: Store, tmp_path: Path
) -> None:
    space = {"granularity": "model", "weight_bits": [4, 6, 8, 32], "activation_bits": [4, 8, 32]}
    prepared = prepare(tiny_spec(sampler=sampler, space=space, budget={"trials": 23}))
    for _ in range(2):  # stopped once, while a trial runs, and taken up again
        search = Search(prepared, store, tmp_path / "files")
        search.try_uncompressed()
        while proposal := search.propose():
            if proposal.number == 3:
                search.fail(proposal.number, "a policy that always fails")
                continue
            if proposal.number == 5:
                search.interrupt()
                break
            for name, value in (("accuracy_drop", 0.01), ("latency_ms", 1.0), ("kl", 0.1)):
                measured = Measurement(name, value, value, value, METRICS[name].unit)
                search.record(proposal.number, Stage("scored", measurements=[measured]))
            search.finish(proposal.number)
    trials = store.trials("tiny")
    assert len({trial.digest for trial in trials}) == 12
    assert [trial.number for trial in trials] == list(range(13))  # one of them the interrupted one's retry
    assert [(trial.number, trial.state) for trial in trials if not trial.state.has_result] == [
        (3, "failed"),
        (5, "interrupted"),
    ]
    assert optuna_states(store).count("FAIL") == 2
    assert len(optuna_states(store)) == 13


def test_what_a_killed_driver_had_enqueued_is_tried_once(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    space = {"granularity": "model", "weight_bits": [8, 32], "activation_bits": [8, 32]}
    prepared = prepare(tiny_spec(space=space))
    Search(prepared, store, tmp_path / "artifacts").optuna.enqueue(
        prepared.space.parameters(prepared.space.anchors()[1]), {}
    )
    search = Search(prepared, store, tmp_path / "artifacts")
    while proposal := search.propose():
        search.fail(proposal.number, "not of interest")
    assert len({trial.digest for trial in store.trials("tiny")}) == len(optuna_states(store)) == 4


def test_the_uncompressed_trial_tells_what_its_layers_ran_in(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    prepared = prepare(tiny_spec())
    Search(prepared, store, tmp_path / "artifacts").try_uncompressed()
    assert executed_precisions(store, "tiny", 0) == {layer.name: "f32" for layer in prepared.layers}


@pytest.mark.parametrize("sampler", ["policy", "tpe", "nsgaii", "random"])
def test_every_sampler_tries_the_anchors_first(sampler: str, tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    prepared = prepare(tiny_spec(sampler=sampler))
    search = Search(prepared, store, tmp_path / "artifacts")
    proposals = [search.propose() for _ in range(4)]
    search.interrupt()
    assert [proposal.policy for proposal in proposals] == prepared.space.anchors()[:4]


def test_a_sampler_that_gave_up_is_reported_where_the_study_is_looked_at(
    tiny_spec: Spec, store: Store, tmp_path: Path
) -> None:
    spec = tiny_spec(objectives=["flops", "artifact_bytes"], budget={"trials": 2})
    with pytest.warns(UserWarning, match="leaves proposing to TPE"):
        searched(prepare(spec), store, tmp_path)
    reason = "TPE proposes in place of the policy sampler: no objective follows the damage"
    assert store.get_study("tiny").remark == reason
    console = Console(record=True, width=120)
    console.print(status_report(store, "tiny"))
    assert reason in console.export_text()
    assert f"- {reason}" in study_note(store.get_study("tiny"), store.trials("tiny"), None, [])


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_between_two_tables_leaves_them_telling_the_same(
    tiny_spec: Spec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's end reaches Optuna before slimfront's own table."""
    search = Search(prepare(tiny_spec()), store, tmp_path / "artifacts")
    tell = search.optuna.tell

    def tell_and_interrupt(*args: Any) -> None:
        tell(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(search.optuna, "tell", tell_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_local(search)
    assert [trial.state for trial in store.trials("tiny")] == ["complete"]
    assert optuna_states(store) == ["COMPLETE"]


def test_interrupted_trials_are_closed_and_tried_again(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    prepared = prepare(tiny_spec(budget={"trials": 3}))
    search = Search(prepared, store, tmp_path / "artifacts")
    interrupted = search.propose()
    search.interrupt()
    assert store.get_trial("tiny", 0).reason == INTERRUPTED
    assert not store.running_trials("tiny")
    searched(prepared, store, tmp_path)
    first, retry, *_ = store.trials("tiny")  # before the anchors that are still to come
    assert (first.number, retry.retry_of) == (0, 0)
    assert retry.policy == interrupted.policy
    assert retry.state == "complete"
    assert [trial.state for trial in store.trials("tiny")].count("complete") == 3  # the budget is not charged for it


def test_orphans_of_a_killed_driver_are_closed_once_and_tried_again(
    tiny_spec: Spec, store: Store, tmp_path: Path
) -> None:
    prepared = prepare(tiny_spec(budget={"trials": 3}))
    Search(prepared, store, tmp_path / "artifacts").propose()  # and its driver is never heard of again
    assert [trial.number for trial in store.running_trials("tiny")] == [0]
    searched(prepared, store, tmp_path)
    searched(prepared, store, tmp_path)
    assert optuna_states(store).count("RUNNING") == 0
    assert [trial.retry_of for trial in store.trials("tiny")].count(0) == 1


def test_resuming_proposes_something_new(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    searched(prepare(tiny_spec(budget={"trials": 3})), store, tmp_path)
    first = [trial.digest for trial in store.trials("tiny")]
    search = searched(prepare(tiny_spec(budget={"trials": 5})), store, tmp_path)
    digests = [trial.digest for trial in store.trials("tiny")]
    assert digests[:3] == first
    assert len(set(digests)) == 5
    assert search.finished == 5


def test_a_study_may_not_change_its_meaning(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    searched(prepare(tiny_spec(budget={"trials": 1})), store, tmp_path)
    changed = prepare(tiny_spec(objectives=["accuracy_drop", "artifact_bytes"]))
    with pytest.raises(StoreError, match="another objectives"):
        Search(changed, store, tmp_path / "artifacts")


def test_bits_that_the_target_does_not_take_name_the_key(tiny_spec: Spec, tmp_path: Path) -> None:
    card = tmp_path / "narrow.yaml"
    target = load_target("cpu-openvino").model_copy(update={"name": "narrow", "activation_bits": [4, 6, 8, 32]})
    card.write_text(card_text(target), encoding="utf-8")
    with pytest.raises(StudyFileError, match=r"space\.activation_bits\.1: target narrow takes 4, 6, 8, 32, not 16"):
        prepare(tiny_spec(space={"weight_bits": [8, 16], "activation_bits": [8, 16]}, target=str(card)))


def test_float_precisions_that_the_target_does_not_have_name_the_key(tiny_spec: Spec) -> None:
    with pytest.raises(
        StudyFileError,
        match=r"space\.float_precision\.1: target cpu-onnxruntime computes floats in default, float32, not in float16$",
    ):
        prepare(tiny_spec(space={"float_precision": ["float32", "float16"]}, target="cpu-onnxruntime"))


def test_float_precisions_that_are_one_on_the_target_are_one_choice(tiny_spec: Spec) -> None:
    space = {"float_precision": ["default", "float32"], "width": [1.0, 0.5]}
    prepared = prepare(tiny_spec(space=space, target="cpu-onnxruntime"))
    assert "float_precision" not in {knob.kind for knob in prepared.space.knobs}
    assert {prepared.space.policy({knob.name: knob.choices[0] for knob in prepared.space.knobs}).float_precision} == {
        "default"
    }, "the first of them holds everywhere"
    assert prepared.spec.space.float_precision == ("default", "float32"), "what is stored may go on on another machine"


def test_a_space_whose_layers_are_all_kept_back_is_empty(tiny_spec: Spec) -> None:
    with pytest.raises(StudyFileError, match="nothing is left to choose"):
        prepare(tiny_spec(space={"weight_bits": [8, 32], "keep": ["*"]}))


def test_a_second_driver_is_refused_by_name(store: Store) -> None:
    refused = pytest.raises(StoreError, match="'tiny' is being searched by another process")
    with sole_driver(store, "tiny"), sole_driver(store, "another"), refused, sole_driver(store, "tiny"):
        pass
    with sole_driver(store, "tiny"):
        pass


@pytest.mark.parametrize("flags", [["avx2"], ["avx2", "avx_vnni"]])
def test_a_processor_without_vnni_is_reported(
    flags: list[str], tiny_spec: Spec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a whole search says so, `test_terminal.py` shows."""
    monkeypatch.setattr("slimfront.search.trials.prepared_study.machine", lambda: {**machine(), "flags": flags})
    spec, said = tiny_spec(), io.StringIO()
    search = Search(prepare(spec), store, tmp_path / "artifacts")
    with SearchProgress(spec, Console(file=said, width=200)) as progress:
        progress.follow(search)
        _warn_of_saturation(search, progress)
    assert ("this processor has no VNNI" in said.getvalue()) == (flags == ["avx2"])


def test_recovery_comes_after_the_timing_and_keeps_both_scores(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    space = {
        "granularity": "model",
        "weight_bits": [8],
        "activation_bits": [8],
        "width": [0.5],
        "recovery_epochs": [1, 2],
    }
    searched(prepare(tiny_spec(space=space, budget={"trials": 1})), store, tmp_path)
    history = store.measurement_history("tiny", 0)
    accuracies = [record.rung for record in history if record.measurement.name == "accuracy"]
    assert accuracies == [0, 1]
    names = [record.measurement.name for record in history]
    assert names.index("speedup") < names.index("accuracy")


def test_structural_choices_are_searched_like_any_other(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    space = {
        "channel_sparsity": [0.5], "weight_bits": [8], "recovery_epochs": [0, 1], "operators": ["rank=0.5"],
        "criterion": ["taylor"], "pruning_steps": [2], "channel_reduction": ["merge"], "weight_sparsity": ["<0.5std"],
    }  # fmt: skip
    searched(prepare(tiny_spec(space=space, sampler="random", budget={"trials": 2})), store, tmp_path)
    trials = [trial for trial in store.trials("tiny") if not trial.policy.is_uncompressed]
    assert [trial.state for trial in trials] == ["complete"] * len(trials)
    assert {trial.policy.layer("conv").operator for trial in trials} == {"rank=0.5"}
    trained = next(trial for trial in trials if trial.policy.recovery.epochs)
    assert trained.policy.pruning.changes() == {"criterion": "taylor", "steps": 2, "reduction": "merge"}


def test_a_step_may_come_before_a_layer_is_taken_apart(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    space = {"weight_bits": [4, 8], "activation_bits": [8], "operators": ["rank=0.5"], "recovery_epochs": [1]}
    recovery = {"steps": ["quantize", "prune", "train"]}
    searched(prepare(tiny_spec(space=space, recovery=recovery, budget={"trials": 1})), store, tmp_path)
    trial = next(trial for trial in store.trials("tiny") if not trial.policy.is_uncompressed)
    assert (trial.state, trial.policy.layer("conv").operator) == ("complete", "rank=0.5"), trial.reason
