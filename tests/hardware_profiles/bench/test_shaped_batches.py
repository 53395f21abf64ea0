"""Latency at several shapes: the figures of each, and of their weighted mean."""

import numpy as np
import pytest
import slimfront
from slimfront.core.errors import StudyFileError, TargetError
from slimfront.evaluators.latency import latency_measurements
from slimfront.hardware_profiles.bench.paired_timing import PairedTiming, Percentile
from slimfront.hardware_profiles.bench.shaped_batches import ShapedBatch, mean_timing
from slimfront.hardware_profiles.cards.shape import Shape, shapes_problem
from slimfront.hardware_profiles.cards.target import card_text, load_target
from slimfront.studies.study_file.spec import StudySpec, incompatible_changes
from slimfront.studies.study_file.target import target_named

STUDY = {
    "study": "a",
    "workload": "digits",
    "target": "cpu-openvino",
    "objectives": ["accuracy_drop", "latency_ms"],
    "budget": {"trials": 1},
}


def timing(candidate_ms, reference_ms, error=1.01):
    ratio = reference_ms / candidate_ms
    single = {50: Percentile(candidate_ms, candidate_ms, candidate_ms)}
    return PairedTiming(ratio, ratio / error, ratio * error, candidate_ms, reference_ms, 0.01, 24, False, single, 99)


def test_the_speedup_of_a_mean_is_the_ratio_of_weighted_times():
    batches = [ShapedBatch("sequence=16", 1, {}), ShapedBatch("sequence=128", 3, {})]
    mean = mean_timing([timing(1.0, 4.0), timing(10.0, 12.0)], batches)
    assert mean.speedup == pytest.approx((4 + 3 * 12) / (1 + 3 * 10))  # not the mean of 4 and 1.2
    assert (mean.low, mean.high) == pytest.approx((mean.speedup / 1.01, mean.speedup * 1.01))
    found = {m.name: m.value for m in latency_measurements(mean, 20.0, load_target("cpu-openvino"))}
    rows = found["latency_ms[sequence=16]"], found["latency_ms[sequence=128]"]
    assert (rows[0] + 3 * rows[1]) / 4 == pytest.approx(found["latency_ms"])
    assert found["latency_ms"] == pytest.approx(20.0 / mean.speedup)
    assert found["speedup[sequence=16]"] == pytest.approx(4.0)


def test_one_batch_is_timed_as_ever():
    one = timing(1.0, 2.0)
    assert mean_timing([one], [ShapedBatch("", 1.0, {"input": np.zeros(1)})]) is one
    assert not any("[" in m.name for m in latency_measurements(one, 2.0, load_target("cpu-openvino")))


def test_a_study_names_its_shapes_and_its_target_has_them(tmp_path):
    shapes = [{"sequence": 16}, {"sequence": 128, "weight": 3}]
    spec = StudySpec.from_document({**STUDY, "shapes": shapes}, "f.yaml", tmp_path)
    assert StudySpec.from_json(spec.to_json()) == spec
    (tmp_path / "card.yaml").write_text(card_text(target_named(spec)))
    read = load_target("card.yaml", tmp_path).shapes
    assert read is not None
    assert [(shape.name, shape.weight) for shape in read] == [("sequence=16", 1), ("sequence=128", 3)]
    assert incompatible_changes(StudySpec.from_document(STUDY, "f.yaml", tmp_path), spec) == ["shapes"]


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ([], "shapes: must not be empty"),
        ([{"weight": 2}], "shapes.0: names no dynamic axis"),
        ([{"sequence": 0}], "shapes.0.sequence: must be at least 1, not 0"),
        ([{"sequence": 8, "weight": -1}], "shapes.0.weight: must be > 0"),
        ([{"sequence": 8}, {"sequence": 8, "weight": 2}], "shapes: sequence=8 is there twice"),
        ({"sequence": 8}, "shapes: must be a list"),
        ([{"a" * 60: 8}], "is longer than"),
    ],
)
def test_bad_shapes_are_one_line(shapes, problem, tmp_path):
    with pytest.raises(StudyFileError) as refused:
        StudySpec.from_document({**STUDY, "shapes": shapes}, "f.yaml", tmp_path)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_shapes_name_axes_that_the_workload_has():
    shapes = [Shape.model_validate({"sequence": 8}), Shape.model_validate({"length": 8})]
    assert shapes_problem(shapes, ["sequence", "length"]) is None
    unknown = "no dynamic axis of the workload has this name; it has sequence"
    assert shapes_problem(shapes, ["sequence"]) == (".1.length", unknown)
    assert shapes_problem(shapes, []) == ("", "needs dynamic axes, and the workload names none in dynamic_axes")


def test_a_card_is_refused_by_its_key(tmp_path):
    (tmp_path / "card.yaml").write_text(card_text(load_target("cpu-openvino")) + "shapes: [{sequence: 0}]\n")
    with pytest.raises(TargetError, match=r"shapes\.0\.sequence"):
        load_target("card.yaml", tmp_path)


def test_a_latency_table_of_several_shapes_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "card.yaml").write_text(card_text(load_target("cpu-openvino")) + "shapes: [{sequence: 8}]\n")
    with pytest.raises(TargetError, match=r"timed at sequence=8, and a latency table predicts one shape"):
        slimfront.profile(tmp_path / "card.yaml", table="none.yaml", storage=f"{tmp_path}/none.db")
