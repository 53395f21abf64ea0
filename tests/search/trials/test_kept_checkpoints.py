"""Checkpoints stay as long as a trial of their policy may go on, and no longer."""

from datetime import UTC, datetime
from pathlib import Path

from slimfront.search.trials.kept_checkpoints import KeptCheckpoints
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store.records import TrialRecord
from slimfront.studies.store.trial_state import TrialState

POLICIES = [Policy(width=1 - number / 10) for number in range(5)]


def trial(number: int, state: TrialState) -> TrialRecord:
    policy = POLICIES[number]
    return TrialRecord(
        study="a", number=number, policy_json=policy.to_json(), digest=policy.digest, state=state, reason=None,
        retry_of=None, worker=None, started=datetime.now(UTC), finished=None, measurements={},
        rung=None, driver_died=False, violations=(),
    )  # fmt: skip


def test_they_stay_while_their_trial_may_go_on(tmp_path: Path) -> None:
    kept = KeptCheckpoints(tmp_path, most_stopped=1)

    def begin(number: int) -> None:
        kept.of(POLICIES[number]).mkdir(parents=True, exist_ok=True)

    def there() -> set[int]:
        return {number for number, policy in enumerate(POLICIES) if (tmp_path / "checkpoints" / policy.digest).exists()}

    for number in range(5):
        begin(number)
    kept.end(trial(0, TrialState.COMPLETE), lambda _: [])
    kept.end(trial(1, TrialState.INTERRUPTED), lambda _: [])
    kept.end(trial(2, TrialState.PRUNED), lambda most: [2][:most])
    assert there() == {1, 2, 3, 4}
    begin(2)  # which goes on after all, as another trial
    kept.end(trial(3, TrialState.PRUNED), lambda most: [3][:most])
    assert there() == {1, 2, 3, 4}
    kept.end(
        trial(4, TrialState.PRUNED), lambda most: [4, 3][:most]
    )  # 3 is not among the first that may go on any more
    assert there() == {1, 2, 4}
    kept.end(trial(2, TrialState.FAILED), lambda most: [4, 3][:most])
    assert there() == {1, 4}
    kept.clear()
    assert there() == set()
