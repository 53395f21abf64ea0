"""The growth of the hypervolume, and what is expected of more trials."""

from datetime import UTC, datetime

import pytest
from slimfront.studies.analysis.convergence import hypervolume_at, outlook, stalled
from slimfront.studies.store.records import FrontSize


def fronts(**volumes: float) -> list[FrontSize]:
    """Snapshots by "afterN" -> hypervolume."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        FrontSize(hypervolume=value, trials=int(key.removeprefix("after")), made_at=now)
        for key, value in volumes.items()
    ]


def test_the_hypervolume_is_that_of_the_last_snapshot_by_then():
    history = fronts(after3=1.0, after9=2.0)
    assert [hypervolume_at(history, trials) for trials in (2, 3, 8, 9, 50)] == [0, 1, 1, 2, 2]


def test_growth_that_halved_is_expected_to_halve_again():
    # 10 -> 14 trials in the second quarter grew 40 %, the second half 20 %: half of that again is 10 %.
    found = outlook(fronts(after10=10.0, after20=14.0, after40=16.8), 40)
    assert found is not None
    assert (found.last, found.expected) == pytest.approx((0.2, 0.1))
    assert str(found) == "the last 20 trials grew the hypervolume by 20.0%; 40 more would probably add about 10.0%"


def test_growth_that_quickened_is_expected_to_go_on_as_it_did():
    found = outlook(fronts(after10=10.0, after20=11.0, after40=22.0), 40)
    assert found is not None
    assert found.expected == found.last == 1.0


@pytest.mark.parametrize(
    ("history", "trials"),
    [
        pytest.param({"after2": 1.0}, 15, id="too few trials"),
        pytest.param({"after30": 1.0}, 40, id="no front by half time"),
        pytest.param({}, 40, id="no front"),
    ],
)
def test_there_is_no_outlook_before_there_is_a_past(history: dict[str, float], trials: int):
    assert outlook(fronts(**history), trials) is None


def test_a_front_stalls_where_it_hardly_grew_within_the_patience():
    history = fronts(after5=1.0, after20=1.004)
    assert stalled(history, 30, 20)  # 0.4 % since trial 10
    assert not stalled(fronts(after5=1.0, after20=1.006), 30, 20)
    assert not stalled(history, 30, 26)  # at trial 4 there was no front yet
    assert stalled(history, 30, 5)
