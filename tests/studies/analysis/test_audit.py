"""The proxy audit, on trials whose ranks can be counted by hand."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from slimfront.core.errors import UserError
from slimfront.core.measurement import PREDICTED, Measurement
from slimfront.core.metrics import METRICS
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.analysis.audit import Misled, audit
from slimfront.studies.reports.audit_report import audit_figure
from slimfront.studies.store.records import TrialRecord
from slimfront.studies.store.trial_state import TrialState


def trial(number: int, flops: float, latency: float, drop: float = 0.0, half: float = 0.01, state: str = "complete"):
    measurements = {
        "flops": Measurement.exact("flops", flops, "fvcore"),
        "latency_ms": Measurement("latency_ms", latency, latency - half, latency + half, "ms"),
        "accuracy_drop": Measurement("accuracy_drop", drop, drop, drop, METRICS["accuracy_drop"].unit),
    }
    policy, now = Policy(), datetime.now(UTC)
    return TrialRecord(
        study="s", number=number, policy_json=policy.to_json(), digest=policy.digest, state=TrialState(state), reason=None,
        worker=None, retry_of=None, rung=None, driver_died=False, started=now, finished=now, violations=(),
        measurements=measurements,
    )  # fmt: skip


def test_correlations_are_those_counted_by_hand() -> None:
    # Ranks by flops 1 2 3 4, by latency 1 3 2 4: one pair of six is discordant, and the squared differences sum to 2.
    (found,) = audit([trial(0, 10, 1), trial(1, 20, 3), trial(2, 30, 2), trial(3, 40, 4)])
    assert (found.proxy, found.n) == ("flops", 4)
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found.kendall == pytest.approx((5 - 1) / 6)
    half = 1.959964 * math.sqrt((1 + 0.8**2 / 2) / 1)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(0.8) - half), math.tanh(math.atanh(0.8) + half))
    )


def test_the_point_best_by_the_proxy_that_latency_beats_is_named() -> None:
    trials = [trial(0, 100, 8), trial(1, 10, 4, drop=0.01), trial(2, 15, 2, drop=0.01), trial(3, 20, 1, drop=0.02)]
    (found,) = audit(trials)
    # Trial 3 is faster than trial 1 too, but less accurate.
    assert found.misled == Misled(trial=1, faster=2, proxy_ratio=1.5, latency_ratio=2.0)
    figure = audit_figure(trials, [found])
    assert next(a for a in figure.layout.annotations if a.showarrow is not False).x == pytest.approx(math.log10(15))


def test_a_difference_within_the_noise_misleads_nobody() -> None:
    trials = [trial(0, 100, 8), trial(1, 10, 2.01, half=0.1), trial(2, 15, 2, half=0.1), trial(3, 200, 9)]
    assert audit(trials)[0].misled is None


def test_an_infeasible_trial_counts_for_ranks_only() -> None:
    trials = [trial(0, 100, 8), trial(1, 10, 4), trial(2, 15, 2, state="infeasible"), trial(3, 200, 9)]
    (found,) = audit(trials)
    assert found.n == 4
    assert found.misled is None


def test_a_proxy_that_is_the_same_for_all_has_no_correlation() -> None:
    (found,) = audit([trial(number, 10, 1 + number) for number in range(4)])
    assert math.isnan(found.spearman)


def test_too_few_trials_are_refused() -> None:
    with pytest.raises(UserError, match="3 trials have a measured latency; an audit needs at least 4"):
        audit([trial(number, 10 * number, 1 + number) for number in range(3)])


def test_predicted_latencies_are_not_taken_for_measured_ones() -> None:
    trials = [trial(number, 10 * number, 1 + number) for number in range(4)]
    for of in trials:
        latency = of.measurements["latency_ms"]
        of.measurements["latency_ms"] = replace(latency, method=f"{PREDICTED} by a latency table")
    with pytest.raises(UserError, match="0 trials have a measured latency"):
        audit(trials)
