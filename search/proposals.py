"""Which policy is tried next: retries, anchors and the greedy path first, then what the sampler proposes, each once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..spaces.policies.policy import Policy
from ..spaces.space import Choice, Space
from ..studies.store.records import TrialRecord
from ..studies.store.trial_state import TrialState
from .bookkeeping import MOST_RETRIES
from .events import DuplicateProposed, Listener
from .optuna.study import OptunaStudy
from .sampler.untried import Untried

RETRY_OF = "retry_of"
"""Attribute of an Optuna trial that repeats the policy of another: the other's number."""


@dataclass(frozen=True)
class Asked:
    """A trial that Optuna handed out: its number, its policy, and the trial whose policy it repeats."""

    number: int
    policy: Policy
    retry_of: int | None


class Proposals:
    """The policies of a study in the order they are tried, each policy once.

    Args:
        seed: of the order in which untried points are looked for.
        tell: is called with proposals that were tried before.

    Attributes:
        untried: the points of the space not tried yet.
        is_exhausted: whether the space was found to hold no other policy.
    """

    def __init__(self, space: Space, seed: int, tell: Listener) -> None:
        self._space, self._tell = space, tell
        self._seen: dict[str, int] = {}
        self._known: set[str] = set()
        self._lost: Counter[str] = Counter()
        self._first: deque[tuple[Mapping[str, Choice], Mapping[str, object]]] = deque()
        self.untried = Untried(space, self._seen, f"{seed}/spare")
        self.is_exhausted = False

    @property
    def has_first(self) -> bool:
        """Whether policies are queued that do not come from the sampler."""
        return bool(self._first)

    def resume(
        self, trials: Sequence[TrialRecord], paid: Sequence[TrialRecord], continued: Callable[[int | None], bool]
    ) -> None:
        """Load what earlier runs tried; trials that ended without a result are queued again.

        Args:
            paid: the trials that have a result.
            continued: whether a retry of the trial of this number continues its training.
        """
        self._seen.update({trial.digest: trial.number for trial in paid})
        self._known = {trial.digest for trial in trials}
        left = _left(trials, paid)
        given_up = _given_up(trials, left)
        self._seen.update({trial.digest: trial.number for trial in given_up})
        retried = {trial.retry_of for trial in trials} | {trial.number for trial in given_up}
        again = (trial for trial in left if trial.number not in retried and not continued(trial.retry_of))
        self._first += [(self._space.parameters(trial.policy), {RETRY_OF: trial.number}) for trial in again]

    def add(self, policies: Iterable[Policy]) -> None:
        """Queue these before the sampler's proposals, each once; policies that the study has tried are skipped."""
        known = self._known | self._seen.keys()
        new = dict.fromkeys(policy for policy in policies if policy.digest not in known)
        self._first += [(self._space.parameters(policy), {}) for policy in new]

    def drop(self, waiting: Sequence[Mapping[str, Choice]]) -> None:
        """Drop queued policies that Optuna has enqueued already: it hands those out first anyway."""
        self._first = deque(item for item in self._first if item[0] not in waiting)

    def next(self, optuna: OptunaStudy) -> Asked | None:
        """The next policy; None where the space is exhausted."""
        while self._first or self.untried.spare() is not None:
            if self._first:
                optuna.enqueue(*self._first.popleft())
            asked = self._ask(optuna)
            if asked.policy.digest not in self._seen or asked.retry_of is not None:
                return asked
            # Not proposed here: a trial that another program enqueued in the study.
            duplicate_of = self._seen[asked.policy.digest]
            optuna.reject(asked.number, duplicate_of)
            self._tell(DuplicateProposed(asked.number, duplicate_of))
        self.is_exhausted = True
        return None

    def again(self, trial: TrialRecord, optuna: OptunaStudy) -> Asked:
        """A new trial that continues a stopped one."""
        optuna.enqueue(self._space.parameters(trial.policy), {RETRY_OF: trial.number})
        return self._ask(optuna)

    def start(self, asked: Asked) -> None:
        """Mark a policy as tried."""
        self._seen[asked.policy.digest] = asked.number

    def losses(self, policy: Policy) -> int:
        """How often a policy's trial was lost in this run."""
        return self._lost[policy.digest]

    def lose(self, trial: TrialRecord, is_queued: bool) -> None:
        """Count that a trial was lost, and queue its policy before all others, unless it comes again by itself."""
        self._lost[trial.digest] += 1
        if is_queued:
            self._first.appendleft((self._space.parameters(trial.policy), {RETRY_OF: trial.number}))

    def forget(self, trial: TrialRecord) -> None:
        """Mark the policy of a trial as untried: it ended without a result."""
        self._seen.pop(trial.digest, None)

    def _ask(self, optuna: OptunaStudy) -> Asked:
        number, parameters, attributes = optuna.ask()
        retry_of = int(str(attributes[RETRY_OF])) if RETRY_OF in attributes else None
        return Asked(number, self._space.policy(parameters), retry_of)


def _left(trials: Sequence[TrialRecord], paid: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that ended without a result."""
    settled = {trial.number for trial in paid}
    return [trial for trial in trials if trial.number not in settled]


def _given_up(trials: Sequence[TrialRecord], left: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Failed trials whose policies ended without a result too often to be tried again."""
    broken = Counter(trial.digest for trial in trials if not trial.state.has_result)
    return [trial for trial in left if trial.state is TrialState.FAILED and broken[trial.digest] > MOST_RETRIES]
