"""No policy is proposed twice, whatever the sampler, and what resembles failures is proposed less often."""

import numpy as np
import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from slimfront.search.optuna.attributes import DUPLICATE, STATE
from slimfront.search.optuna.policy_sampler import PolicySampler
from slimfront.search.optuna.trial_reader import TrialReader
from slimfront.search.optuna.untried_sampler import UntriedSampler
from slimfront.search.sampler.feasibility import Feasibility
from slimfront.search.sampler.study_terms import space_dimensions
from slimfront.search.sampler.untried import Untried
from slimfront.spaces.choices import SpaceChoices
from slimfront.spaces.models.layers import Layer
from slimfront.spaces.space import Space

LAYERS = [Layer(f"l{index}", "linear", "", 64, 640, True) for index in range(4)]
SPACE = Space(LAYERS, [], SpaceChoices(weight_bits=(4, 8, 32)))
MAKERS = {
    "policy": lambda untried: PolicySampler(
        ["quality", "measured"], dimensions=space_dimensions(SPACE), may_propose=untried.__contains__, seed=0
    ),
    "tpe": lambda _: TPESampler(seed=0, multivariate=True),
    "nsgaii": lambda _: NSGAIISampler(seed=0, population_size=8),
    "random": lambda _: RandomSampler(seed=0),
}


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class Asked:
    """A study over `SPACE` that is asked as the driver asks: a policy whose first layer has 8 bits fails."""

    def __init__(self, name: str) -> None:
        self.seen: dict[str, int] = {}
        self.untried = Untried(SPACE, self.seen, 0)
        sampler = UntriedSampler(MAKERS[name](self.untried), space_dimensions(SPACE), self.untried, 0, name != "policy")
        self.study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def search(self, trials: int) -> None:
        while self.untried.spare() is not None and len(self.study.trials) < trials:
            trial = self.study.ask()
            _ = trial.relative_params
            bits = [trial.suggest_categorical(knob.name, knob.choices) for knob in SPACE.knobs]
            self.seen[SPACE.policy(trial.params).digest] = trial.number
            if bits[0] == 8:
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            kl = sum(4.0 ** (2 - b) for b in bits if b < 32)
            trial.set_user_attr("kl", kl)
            self.study.tell(trial, [kl / 3, sum(bits)])


@pytest.mark.parametrize("name", MAKERS)
def test_every_policy_is_asked_once_and_nothing_else_is(name: str) -> None:
    asked = Asked(name)
    asked.search(200)
    assert len(asked.study.trials) == len(asked.seen) == 81
    assert {trial.state for trial in asked.study.trials} == {TrialState.COMPLETE, TrialState.FAIL}


@pytest.mark.parametrize("name", MAKERS)
def test_a_choice_that_always_fails_is_asked_less_often(name: str) -> None:
    """A third of all policies have it: at random 13 of 40 trials would."""
    asked = Asked(name)
    asked.search(40)
    failed = [trial.number for trial in asked.study.trials if trial.state == TrialState.FAIL]
    assert len(failed) <= 10
    assert sum(number >= 20 for number in failed) <= 4


def test_a_spare_point_is_one_whose_policy_was_not_tried() -> None:
    untried = Untried(SPACE, {SPACE.anchors()[0].digest: 0}, 0)
    assert SPACE.parameters(SPACE.anchors()[0]) not in untried
    spare = untried.spare()
    assert spare in untried
    assert untried.spare() == spare


def test_a_large_space_has_a_spare_point_too() -> None:
    space = Space(
        [Layer(f"l{i:02}", "linear", "", 64, 640, True) for i in range(40)], [], SpaceChoices(weight_bits=(4, 8))
    )
    assert Untried(space, {}, 0).spare() is not None


def test_an_enqueued_retry_of_what_was_tried_is_asked() -> None:
    asked = Asked("nsgaii")
    asked.search(10)
    again = asked.study.trials[0].params
    asked.study.enqueue_trial(again, user_attrs={"retry_of": 0})
    trial = asked.study.ask()
    _ = trial.relative_params
    assert {knob.name: trial.suggest_categorical(knob.name, knob.choices) for knob in SPACE.knobs} == again


def test_neighbours_of_a_failure_are_less_likely_to_end() -> None:
    codes = np.random.default_rng(0).integers(3, size=(12, 8))
    failed = np.arange(12) == 11
    near, far = codes[11:].copy(), (codes[11:] + 1) % 3
    near[0, 0] = (near[0, 0] + 1) % 3
    may_end = Feasibility(codes, failed)
    itself, neighbour, stranger = (float(may_end(row)[0]) for row in (codes[11:], near, far))
    assert itself < neighbour < 0.7
    assert stranger > 0.9


def test_one_choice_is_blamed_where_every_policy_with_it_failed() -> None:
    codes = np.random.default_rng(0).integers(3, size=(40, 30))
    may_end = Feasibility(codes, codes[:, 7] == 2)
    others = np.random.default_rng(1).integers(3, size=(60, 30))
    chances, blamed = may_end(others), others[:, 7] == 2
    assert chances[blamed].mean() < 0.6 * chances[~blamed].mean()


def test_interrupted_and_duplicate_rows_are_no_failures() -> None:
    study = optuna.create_study()
    for state in ("interrupted", DUPLICATE, "failed"):
        trial = study.ask()
        trial.suggest_categorical("bits", [4, 8])
        trial.set_user_attr(STATE, state)
        study.tell(trial, state=TrialState.FAIL)
    completed, _ = TrialReader().read(study)
    assert [study.trials[trial.number].user_attrs[STATE] for trial in completed] == ["failed"]
