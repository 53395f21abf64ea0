"""A front as JSON of exactly the published shape, and as a table."""

from __future__ import annotations

import io
import json

import pandas
import pytest
from slimfront.core.measurement import Measurement
from slimfront.studies.analysis.front import Objective, Point
from slimfront.studies.reports.front_table import front_document, front_frame

OBJECTIVES = [Objective.of("latency_ms"), Objective.of("accuracy")]
BASELINE = {"latency_ms": Measurement("latency_ms", 10.0, 9.0, 11.0, "ms", 40, "paired-median")}


def point(trial: int, latency: float, accuracy: float) -> Point:
    measurements = {
        "latency_ms": Measurement("latency_ms", latency, latency - 0.5, latency + 0.5, "ms", 40, "paired-median"),
        "accuracy": Measurement("accuracy", accuracy, accuracy, accuracy, "fraction"),
        "artifact_bytes": Measurement.exact("artifact_bytes", 100.0, "stat"),
    }
    values = (latency, accuracy)
    return Point(trial, f"digest-{trial}", values, values, values, measurements)


POINTS = [point(0, 5.0, 0.75), point(1, 2.0, 0.5)]


def test_the_document_by_hand():
    assert front_document("demo", OBJECTIVES, BASELINE, POINTS[:1]) == {
        "study": "demo",
        "objectives": [
            {"name": "latency_ms", "unit": "ms", "direction": "minimize"},
            {"name": "accuracy", "unit": "fraction", "direction": "maximize"},
        ],
        "baseline": {"measurements": {"latency_ms": {"value": 10.0, "low": 9.0, "high": 11.0, "unit": "ms"}}},
        "points": [
            {
                "trial": 0,
                "policy_digest": "digest-0",
                "values": {"latency_ms": 5.0, "accuracy": 0.75},
                "measurements": {
                    "accuracy": {"value": 0.75, "low": 0.75, "high": 0.75, "unit": "fraction"},
                    "artifact_bytes": {"value": 100.0, "low": 100.0, "high": 100.0, "unit": "bytes"},
                    "latency_ms": {"value": 5.0, "low": 4.5, "high": 5.5, "unit": "ms"},
                },
                "lucky": None,
                "beaten_beyond_noise_by": [],
            }
        ],
    }


def test_the_document_survives_json():
    document = front_document("demo", OBJECTIVES, BASELINE, POINTS)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(("objectives", "trials"), [(OBJECTIVES, [1, 0]), (OBJECTIVES[::-1], [0, 1])])
def test_points_are_listed_best_first_by_the_first_objective(objectives, trials):
    points = [Point.of(Trial(p), objectives) for p in POINTS]
    assert [p["trial"] for p in front_document("demo", objectives, {}, points)["points"]] == trials
    assert front_frame(objectives, points)["trial"].tolist() == trials


class Trial:
    def __init__(self, point: Point) -> None:
        self.number, self.digest, self.measurements = point.trial, point.policy_digest, point.measurements


def test_the_table_has_a_column_per_number_objectives_first():
    frame = front_frame(OBJECTIVES, POINTS)
    assert frame.columns.tolist() == [
        *("trial", "policy_digest"),
        *("latency_ms", "latency_ms_low", "latency_ms_high"),
        *("accuracy", "accuracy_low", "accuracy_high"),
        *("artifact_bytes", "artifact_bytes_low", "artifact_bytes_high"),
    ]
    assert frame.iloc[0].tolist() == [1, "digest-1", 2.0, 1.5, 2.5, 0.5, 0.5, 0.5, 100.0, 100.0, 100.0]


def test_the_table_reads_back_from_csv():
    frame = front_frame(OBJECTIVES, POINTS)
    again = pandas.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert again["latency_ms"].tolist() == [2.0, 5.0]


def test_an_empty_front_is_an_empty_table_with_its_columns():
    frame = front_frame(OBJECTIVES, [])
    assert len(frame) == 0
    assert "latency_ms" in frame.columns
