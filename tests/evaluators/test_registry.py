"""Which evaluators run: those a phase asks for, a study names and a machine has; what can be added, and what is refused."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from slimfront.core.errors import EvaluationError, StudyFileError, UserError
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS, Metric
from slimfront.evaluators import registry
from slimfront.evaluators.energy import Energy
from slimfront.evaluators.evaluator import Context, Evaluator, LoweredCandidate
from slimfront.evaluators.load_time import LoadTime
from slimfront.evaluators.memory import PeakMemory
from slimfront.evaluators.registry import measure, register, require_available
from slimfront.hardware_profiles.bench import energy
from slimfront.hardware_profiles.bench.energy import Rapl, energy_meter
from slimfront.hardware_profiles.bench.load_time import load_seconds
from slimfront.hardware_profiles.bench.peak_memory import peak_growth
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.search.sampler.study_terms import role_of, worst_corner
from slimfront.search.trials.given_workload import pickled_registrations, take_registrations
from slimfront.search.trials.prepared_study import prepare
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.analysis.front import Objective, reference_point
from slimfront.studies.study_file.constraint import Constraint
from slimfront.studies.study_file.load import load_study
from slimfront.studies.wording import figure_text

TARGET = load_target("cpu-openvino")


def test_what_a_study_does_not_name_is_not_measured(complete, lower, monkeypatch):
    monkeypatch.setattr(Energy, "refusal", lambda *_: None)
    monkeypatch.setattr(Energy, "evaluate", lambda *_: [])
    lowered = lower(Policy())

    def measured(*metrics: str) -> set[str]:
        at = dataclasses.replace(complete, metrics=metrics, timing_seconds=0.1)
        return {m.name for m in measure(lowered, at, "timed")}

    plain = measured("accuracy", "latency_ms")
    assert plain.isdisjoint({"peak_memory_bytes", "load_ms"})
    assert measured("peak_memory_bytes", "energy_j") - plain == {"peak_memory_bytes"}


def test_what_a_study_names_and_the_machine_has_not_is_no_silent_gap(complete, lower, monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    at = dataclasses.replace(complete, metrics=("energy_j",), timing_seconds=0.1)
    with pytest.raises(EvaluationError, match="energy needs RAPL"):
        measure(lower(Policy()), at, "timed")


class Worth(Evaluator):
    """A metric of a program's own."""

    name = "worth"
    metrics = (Metric("worth", "points", "maximize", "what it is worth", "quality", "scored", margin=5),)
    phases = ("scored", "recovered")

    def evaluate(self, lowered: LoweredCandidate, context: Context) -> list[Measurement]:
        return [Measurement.exact("worth", 7, "a guess")]


@pytest.fixture
def own(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_EVALUATORS", dict(registry._EVALUATORS))
    monkeypatch.setattr(METRICS, "_own", dict(METRICS._own))


def test_a_registered_metric_is_measured_and_can_be_searched_for(own, complete, lower):
    register(Worth)
    assert [m.value for m in measure(lower(Policy()), complete, "scored") if m.name == "worth"] == [7]
    assert "worth" in METRICS.searchable
    assert str(Constraint.parse("worth >= 3", METRICS.searchable)) == "worth >= 3"
    assert role_of("worth", True) == "quality"
    objectives = [Objective.of(name) for name in ("worth", "latency_ms")]
    assert reference_point({"latency_ms": 1.0}, objectives) == pytest.approx((0, 1.1))
    assert worst_corner({"worth": 9.0, "latency_ms": 1.0}, ["worth", "latency_ms"], []) == pytest.approx([4, 1.1])
    assert figure_text(Measurement.exact("worth", 7, "a guess")) == "worth 7.000 points"
    require_available("worth", TARGET.model_copy(update={"predict": True}))


def test_a_registered_evaluator_goes_to_workers(own):
    register(Worth)
    pickled = pickled_registrations()
    del registry._EVALUATORS["worth"], METRICS._own["worth"]
    for _ in range(2):  # a worker in the same process has it already
        take_registrations(pickled)
    assert METRICS["worth"] == Worth.metrics[0]
    assert [type(found) for found in registry.evaluators() if found.name == "worth"] == [Worth]


def another(**attributes: object) -> type[Evaluator]:
    return type("Another", (Worth,), {"name": "another", **attributes})


def test_duplicates_are_refused_and_the_known_are_listed(own):
    register(Worth)
    with pytest.raises(UserError, match=r"^evaluator 'worth' is already registered; known are .*accuracy.*, worth$"):
        register(Worth)
    other = dataclasses.replace(Worth.metrics[0], unit="francs")
    with pytest.raises(UserError, match=r"^metric 'worth' is already registered; known are accuracy, .*, worth$"):
        register(another(metrics=(other,)))
    with pytest.raises(UserError, match=r"^evaluator 'another' makes worth, which 'worth' makes in the same phase$"):
        register(another())
    register(another(phases=("confirmed",)))  # at another moment it is no duplicate
    assert isinstance(METRICS["worth"], Metric)


def test_what_is_no_evaluator_is_refused():
    with pytest.raises(
        UserError, match=r"^<class 'int'> is not a subclass of slimfront\.evaluators\.evaluator\.Evaluator$"
    ):
        register(int)


def test_a_metric_that_nothing_makes_is_refused(own):
    METRICS.register("fame", Metric("fame", "points", "maximize", "how known it is", "measured", "timed"))
    with pytest.raises(EvaluationError, match=r"^no evaluator makes it$"):
        require_available("fame", TARGET)


def test_memory_that_is_held_and_let_go_again_is_counted():
    size = 64 * 2**20

    def use() -> None:
        np.ones(size // 8)

    assert 0.95 * size <= peak_growth(use) <= 1.2 * size
    assert 0.95 * size <= peak_growth(use) <= 1.2 * size  # what the first one freed does not hide the second
    assert peak_growth(lambda: None) < size / 20


def test_an_artifact_needs_as_much_memory_each_time(complete, lower):
    first, second = (PeakMemory().evaluate(lower(Policy()), complete)[0].value for _ in range(2))
    assert first > 0
    assert second == pytest.approx(first, rel=0.5)


def test_a_load_time_is_of_first_loads_in_fresh_processes(complete, lower):
    artifact = lower(Policy()).artifact
    (measured,) = LoadTime().evaluate(lower(Policy()), complete)
    assert (measured.unit, measured.n) == ("ms", 3)
    target, warm = complete.target, []
    for _ in range(2):
        start = time.perf_counter()
        complete.runtime.load(artifact.path, target).run({"input": np.zeros((target.batch, 3, 8, 8), np.float32)})
        warm.append((time.perf_counter() - start) * 1e3)
    assert measured.value > min(warm) / 2  # in a process that has loaded it before, it is faster if anything
    assert 0 < measured.low <= measured.value <= measured.high < 30_000


def test_loading_reads_the_file_from_its_disk_and_leaves_it_whole(tmp_path):
    file = tmp_path / "model"
    file.write_bytes(b"weights" * 1000)  # not written to the disk yet
    order = []
    assert load_seconds(file, lambda: order.append(file.read_bytes())) > 0
    assert order == [b"weights" * 1000]


def counter(root: Path, zone: str, now: int, top: int, name: str = "package-0") -> None:
    (root / zone).mkdir(parents=True, exist_ok=True)
    (root / zone / "name").write_text(f"{name}\n")
    (root / zone / "energy_uj").write_text(str(now))
    (root / zone / "max_energy_range_uj").write_text(str(top))


def test_rapl_adds_up_packages_and_follows_a_counter_that_starts_over(tmp_path):
    counter(tmp_path, "intel-rapl:0", 1_000_000, 5_999_999)
    counter(tmp_path, "intel-rapl:1", 500_000, 5_999_999)
    counter(tmp_path, "intel-rapl:0:0", 77, 100, "core")  # a part of a package that is counted already
    counter(tmp_path, "intel-rapl:2", 10, 5_999_999, "psys")  # the platform, packages and all
    meter = Rapl(tmp_path)
    assert meter.joules() == 0
    counter(tmp_path, "intel-rapl:0:0", 99, 100, "core")
    counter(tmp_path, "intel-rapl:2", 4_000_000, 5_999_999, "psys")
    assert meter.joules() == 0
    counter(tmp_path, "intel-rapl:0", 3_000_000, 5_999_999)
    assert meter.joules() == pytest.approx(2)
    counter(tmp_path, "intel-rapl:0", 1_000_000, 5_999_999)  # 3 J to the top, and 1 J beyond
    counter(tmp_path, "intel-rapl:1", 1_000_000, 5_999_999)
    assert meter.joules() == pytest.approx(2 + 4 + 0.5)


def test_a_machine_without_counters_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    with pytest.raises(EvaluationError, match=r"^energy needs RAPL counters, and there are none in "):
        energy_meter("openvino")
    with pytest.raises(EvaluationError, match="energy needs RAPL"):
        require_available("energy_j", TARGET)
    require_available("latency_ms", TARGET)
    require_available("energy_j", TARGET.model_copy(update={"remote": True}))  # its node may have counters


@pytest.mark.parametrize(
    "metric", ["latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "peak_memory_bytes", "load_ms", "energy_j"]
)
def test_what_no_table_predicts_is_refused_of_a_target_that_cannot_be_reached(metric):
    elsewhere = TARGET.model_copy(update={"predict": True})
    with pytest.raises(
        EvaluationError, match=r"^a latency table predicts speedup, latency_ms, throughput, speedup_float32 and nothing"
    ):
        require_available(metric, elsewhere)
    for predicted in ("speedup", "latency_ms", "throughput", "accuracy", "flops"):
        require_available(predicted, elsewhere)


@pytest.mark.parametrize("name", ["gpu-tensorrt", "gpu-torch"])
def test_peak_memory_of_the_host_is_not_taken_for_that_of_a_gpu(name):
    with pytest.raises(EvaluationError, match=r"^it is the host's memory, and \S+ computes in the GPU's$"):
        require_available("peak_memory_bytes", load_target(name))


def test_energy_of_a_gpu_needs_nvml():
    if Path("/dev/nvidia0").exists():
        assert energy_meter("torch-cuda").joules() >= 0
    else:
        with pytest.raises(EvaluationError, match=r"^energy needs NVML"):
            energy_meter("torch-cuda")


@pytest.mark.parametrize("key", ["objectives", "constraints"])
def test_energy_that_cannot_be_measured_is_refused_before_a_study_begins(key, monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    lines = {"objectives": "[energy_j, latency_ms]"} if key == "objectives" else {"constraints": '["energy_j <= 1"]'}
    text = "\n".join(f"{name}: {value}" for name, value in {
        "study": "x", "workload": "digits", "target": "cpu-openvino", "objectives": "[accuracy_drop, latency_ms]",
        "budget": "{trials: 1}", "space": "{weight_bits: [8, 32]}", **lines,
    }.items())  # fmt: skip
    (tmp_path / "study.yaml").write_text(text)
    spec = load_study(str(tmp_path / "study.yaml"))
    with pytest.raises(StudyFileError, match=rf"{key}.0: energy_j cannot be measured: energy needs RAPL"):
        prepare(spec)


def test_memory_load_time_and_energy_need_a_bench(context, lower):
    for evaluator in (PeakMemory(), LoadTime(), Energy()):
        with pytest.raises(EvaluationError, match=r"needs an artifact and a bench$"):
            evaluator.evaluate(lower(Policy()), dataclasses.replace(context, bench=None))


def test_energy_is_the_counters_rise_over_the_runs(complete, lower):
    class Counting:
        """A bench whose counter rises by 3 J a run."""

        def energy(self, candidate, seconds, repeats):
            return "a counter", [3.0] * repeats

    (measured,) = Energy().evaluate(lower(Policy()), dataclasses.replace(complete, bench=Counting()))
    assert (measured.value, measured.low, measured.high, measured.unit, measured.method) == (3, 3, 3, "J", "a counter")
