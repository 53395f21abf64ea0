"""A study's reference: chosen when it begins, kept when it continues, measured again at quiet moments.

Where this machine computes a whole model in float32 only, the choice among several deployments cannot be had for real; that of
a machine with one is had everywhere, by a runtime that reports one (`one_precision`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from slimfront.core.errors import StoreError, StudyFileError
from slimfront.hardware_profiles.bench.bench import Bench
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.onnx.openvino_runtime import OpenVinoRuntime
from slimfront.search import study_setup
from slimfront.search.confirmation.confirm import confirm_front
from slimfront.search.driver import Search
from slimfront.search.events import Event, Preparing, QuietMomentTaken, ReferenceNotMeasured, ReferenceSettled
from slimfront.search.execution.local import run_local
from slimfront.search.trials.prepared_study import prepare
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.reference_wording import remark_text
from slimfront.studies.reports.status import study_status
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

PRECISIONS = OpenVinoRuntime().float_precisions(load_target("cpu-openvino"))
several = pytest.mark.skipif(len(PRECISIONS) == 1, reason="this processor computes whole models in float32 only")
Spec = Callable[..., StudySpec]


@pytest.fixture
def tiny_spec(tiny_spec: Spec) -> Spec:
    """The tiny study with a reference to be chosen, and a space that leaves float precision open."""
    return lambda **changes: tiny_spec(**{"reference": "best", **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        yield opened


@pytest.fixture
def one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which there is float32 only."""
    monkeypatch.setattr(OpenVinoRuntime, "float_precisions", lambda self, target: ("float32",))
    monkeypatch.setattr(OpenVinoRuntime, "default_float_precision", lambda self, target: "float32")


@pytest.fixture
def opened(store: Store, tmp_path: Path) -> Callable[[StudySpec], tuple[Search, list[Event]]]:
    def open_(spec: StudySpec) -> tuple[Search, list[Event]]:
        heard: list[Event] = []

        def listen(event: Event) -> None:
            if not isinstance(event, Preparing):
                heard.append(event)

        return Search(prepare(spec), store, tmp_path / "artifacts", [listen]), heard

    return open_


def _slower(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Have the reference's latency be measured as so many times what it is from now on."""
    measured = Bench.time_reference

    def time_reference(self: Bench, seconds: float = 1.0) -> tuple[float, float, float, int]:
        value, low, high, blocks = measured(self, seconds)
        return factor * value, factor * low, factor * high, blocks

    monkeypatch.setattr(Bench, "time_reference", time_reference)


@pytest.mark.usefixtures("one_precision")
def test_one_free_deployment_costs_nothing(
    opened, tiny_spec: Spec, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed: list[Path] = []
    time = Bench.time
    monkeypatch.setattr(Bench, "time", lambda self, path, *rest: timed.append(path) or time(self, path, *rest))
    left = tmp_path / "artifacts" / "tiny" / "reference" / "free" / "float32" / "model.onnx"
    left.parent.mkdir(parents=True)
    left.write_text("of another model: its run was killed")
    search, heard = opened(tiny_spec())
    study = store.get_study("tiny")
    assert study.reference is not None
    assert (study.reference.precision, study.reference.name) == ("float32", "openvino default: float32")
    assert [each.figures for each in study.reference.deployments] == [{}]
    assert timed == [search.reference.artifact.path], "against itself, as ever"
    assert study.baseline["speedup_float32"].value == study.baseline["speedup"].value
    assert study.spec.space.offered("float_precision") == ("float32",)
    assert search.prepared.space.anchors()[0] == Policy()
    assert [type(event) for event in heard] == [ReferenceSettled]


@several
def test_the_runtimes_default_is_the_reference_where_it_is_faster_and_loses_nothing(
    opened, tiny_spec: Spec, store: Store
) -> None:
    search, heard = opened(tiny_spec(budget={"trials": 2}, sensitivity=False))
    study = store.get_study("tiny")
    record = study.reference
    assert record is not None
    assert [each.precision for each in record.deployments] == list(PRECISIONS)
    assert all(each.figures["accuracy_drop"].n > 1 for each in record.deployments if each.problem is None)
    assert heard == [ReferenceSettled(replace(record), is_new=True)]
    assert study.spec.space.offered("float_precision") == (record.precision,), "without a preset nothing is searched"
    run_local(search)
    trials = store.trials("tiny")
    assert trials[0].policy == Policy(float_precision=record.precision)
    assert trials[0].measurements["latency_ms"] == study.baseline["latency_ms"], "it takes the baseline over"
    assert {trial.policy.float_precision for trial in trials} == {record.precision}
    for trial in trials[1:]:
        speedup, over = trial.measurements["speedup"], trial.measurements["speedup_float32"]
        own = record.over_float32.value if record.over_float32 else 1.0
        assert over.value == pytest.approx(speedup.value * own)
        assert over.low <= over.value <= over.high
        assert over.high / over.low >= speedup.high / speedup.low


@several
@pytest.mark.parametrize("wanted", ["default", "float32"])
def test_a_study_file_may_ask_for_a_reference(opened, tiny_spec: Spec, store: Store, wanted: str) -> None:
    search, _ = opened(tiny_spec(reference=wanted))
    study = store.get_study("tiny")
    assert study.reference is not None
    assert study.reference.precision == search.reference.precision == wanted
    assert search.prepared.space.anchors()[0] == Policy(float_precision=wanted)  # pyright: ignore[reportArgumentType]
    assert study.baseline["accuracy_drop"].value == 0


@several
def test_a_preset_offers_what_pays_and_the_file_what_it_says(opened, tiny_spec: Spec, store: Store) -> None:
    search, _ = opened(tiny_spec(space={"preset": "cnn"}, reference="float32"))
    offered = store.get_study("tiny").spec.space.offered("float_precision")
    assert set(offered) <= set(PRECISIONS)
    assert offered[0] == "float32"
    assert search.prepared.space.anchors()[0].float_precision == "float32"
    search, _ = opened(tiny_spec(study="own", space={"weight_bits": [8, 32], "float_precision": ["float32"]}))
    assert store.get_study("own").spec.space.offered("float_precision") == ("float32",)


def test_a_study_continues_with_its_reference_and_its_space(opened, tiny_spec: Spec, store: Store) -> None:
    first, _ = opened(tiny_spec(space={"preset": "cnn"}))
    before = store.get_study("tiny")
    again, heard = opened(tiny_spec(space={"preset": "auto"}))
    after = store.get_study("tiny")
    assert after.spec.space == before.spec.space
    assert [knob.name for knob in again.prepared.space.knobs] == [knob.name for knob in first.prepared.space.knobs]
    assert before.reference is not None
    assert after.reference is not None
    assert (after.reference.precision, after.reference.deployments) == (
        before.reference.precision,
        before.reference.deployments,
    )
    assert len(after.reference.moments) == len(before.reference.moments) + 1
    assert [type(event) for event in heard] == [ReferenceSettled, QuietMomentTaken]
    with pytest.raises(StoreError, match="has trials with another reference"):
        opened(tiny_spec(space={"preset": "cnn"}, reference="default"))


@pytest.mark.usefixtures("one_precision")
def test_a_reference_that_cannot_be_had_names_the_key(opened, tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoRuntime, "float_precisions", lambda self, target: ("default",))
    monkeypatch.setattr(OpenVinoRuntime, "default_float_precision", lambda self, target: "bfloat16")
    monkeypatch.setattr("slimfront.search.trials.prepared_study.distinct", lambda default, others: ("default",))
    with pytest.raises(StudyFileError, match=r"study\.yaml: reference: the target has no float32 deployment"):
        opened(tiny_spec(reference="float32"))
    with pytest.raises(StudyFileError, match="reference: 'fast' is not one of 'best', 'default' or 'float32'"):
        tiny_spec(reference="fast")


@pytest.mark.slow  # a whole search, its confirmation and a second run
def test_milliseconds_follow_a_quieter_moment_everywhere(
    opened, tiny_spec: Spec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = "latency_ms <= 1000"
    spec = tiny_spec(constraints=[constraint], sensitivity=False)
    with monkeypatch.context() as patched:
        _slower(patched, 4.0)  # the search began at a busy moment
        search, _ = opened(spec)
        run_local(search)
    before, busy = {t.number: t for t in store.trials("tiny")}, store.get_study("tiny").baseline
    volumes = [front.hypervolume for front in store.fronts("tiny")]
    confirm_front(search)  # at a quiet one
    study = store.get_study("tiny")
    factor = study.baseline["latency_ms"].value / busy["latency_ms"].value
    assert factor < 0.5
    assert search.reference.latency_ms == study.baseline["latency_ms"].value
    learned = optuna.load_study(study_name="tiny", storage=store.url).get_trials()
    for number, trial in before.items():
        was = trial.measurements["latency_ms"].value
        history = [
            r.measurement.value for r in store.measurement_history("tiny", number) if r.measurement.name == "latency_ms"
        ]
        assert history[0] == pytest.approx(was * factor)
        assert learned[number].values[1] == pytest.approx(was * factor)
        assert learned[number].user_attrs["latency_ms"] == pytest.approx(was * factor)
        assert learned[number].constraints[constraint] == pytest.approx(was * factor - 1000)
        assert store.get_trial("tiny", number).violations[0].excess == pytest.approx(was * factor - 1000)
    assert [front.hypervolume for front in store.fronts("tiny")][: len(volumes)] == pytest.approx(
        [volume * factor for volume in volumes]
    )
    assert "milliseconds of all trials are in the scale of the latter" in (remark_text(study) or "")
    assert study_status(store, "tiny").remark == remark_text(study)


def test_another_machine_says_nothing_of_this_ones_milliseconds(
    opened, tiny_spec: Spec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tiny_spec())
    before = store.get_study("tiny")
    monkeypatch.setattr(study_setup, "MACHINE", ("cpu", "wheels"))
    machine = {"cpu": "another", "wheels": 4}
    prepared = prepare(tiny_spec())
    monkeypatch.setattr(type(prepared), "measured_with", lambda self: (machine, {"openvino": "1"}))
    search, heard = opened(tiny_spec())
    assert heard[-1] == ReferenceNotMeasured("it was timed with another cpu and wheels and openvino")
    assert not search.reference.was_timed_here
    assert store.get_study("tiny").baseline == before.baseline
