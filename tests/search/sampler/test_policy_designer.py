"""The designer by itself: plain values in, choices out, without Optuna."""

import subprocess
import sys

import numpy as np
import pytest
from slimfront.search.sampler.designer import Choices, CompletedTrial, Designer, Outcome
from slimfront.search.sampler.dimensions import search_dimension
from slimfront.search.sampler.policy_designer import PolicyDesigner

BITS = (2, 4, 8, 32)
NAMES = [f"layer{index}.weight_bits" for index in range(5)]
DIMENSIONS = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
HURT, SIZE = np.array([0.9, 0.31, 2.3, 0.07, 5.1]), np.array([7.0, 3.0, 1.3, 19.0, 2.1])


def designer(seed: int = 0, **settings) -> PolicyDesigner:
    return PolicyDesigner(DIMENSIONS, ["quality", "measured"], seed=seed, **settings)


def ended(number: int, choices: Choices, outcome: Outcome = Outcome.COMPLETE) -> CompletedTrial:
    bits = np.array([choices[name] for name in NAMES])
    damage = float(HURT @ np.where(bits < 32, 4.0 ** (2 - bits), 0.0))
    if outcome is Outcome.FAILED:
        return CompletedTrial(number, choices, outcome)
    return CompletedTrial(number, choices, outcome, (damage / 3, float(SIZE @ bits)), damage)


def suggested(tried: PolicyDesigner, trials: int, outcome=lambda _: Outcome.COMPLETE) -> list[Choices]:
    """A study of one trial at a time."""
    found: list[Choices] = []
    for number in range(trials):
        [choices] = tried.suggest()
        found.append(choices)
        tried.update([ended(number, choices, outcome(choices))], [])
    return found


def distinct(found: list[Choices]) -> int:
    return len({tuple(choices[name] for name in NAMES) for choices in found})


def test_it_is_a_designer() -> None:
    proposer: Designer = designer()
    proposer.update([], [])
    assert len(proposer.suggest(3)) == 3


def test_proposals_leave_the_middle_of_the_space_for_its_front() -> None:
    """Of the last 20 proposals few are dominated by one of the first 20; at random 12 to 18 are."""
    found = suggested(designer(), 40)
    trials = [ended(number, choices) for number, choices in enumerate(found)]
    values = np.array([trial.values for trial in trials])
    late = values[20:]
    beaten = [(values[:20] <= value).all(axis=1).any() for value in late]
    assert np.mean(beaten) < 0.35
    assert distinct(found) == 40


def test_several_proposals_at_once_are_different_policies() -> None:
    tried = designer()
    suggested(tried, 12)
    assert distinct(tried.suggest(6)) == 6
    running = tried.suggest(1)
    tried.update([], running)
    assert running[0] not in tried.suggest(4)


def test_the_order_in_which_trials_end_does_not_matter() -> None:
    draw = np.random.default_rng(1)
    trials = [ended(number, dict(zip(NAMES, map(int, draw.choice(BITS, 5)), strict=True))) for number in range(14)]
    first, second = designer(), designer()
    first.update(trials, [])
    for trial in trials[::-1]:
        second.update([trial], [])
    assert first.suggest(3) == second.suggest(3)


def test_a_space_that_is_exhausted_has_no_proposal() -> None:
    tried = PolicyDesigner(DIMENSIONS[:2], ["quality", "measured"], seed=0)
    found = tried.suggest(20)
    assert len({tuple(choices.values()) for choices in found}) == len(found)
    assert len(found) >= 14  # at random a last one may be missed
    tried.update([], [{NAMES[0]: a, NAMES[1]: b} for a in BITS for b in BITS])
    assert tried.suggest(1) == []


def test_a_choice_that_fails_is_proposed_less_often() -> None:
    found = suggested(designer(), 36, lambda choices: Outcome.FAILED if choices[NAMES[1]] == 8 else Outcome.COMPLETE)
    assert sum(choices[NAMES[1]] == 8 for choices in found[18:]) <= 3  # a quarter, 4 or 5, at random
    assert distinct(found) == 36


@pytest.mark.parametrize("roles", [["measured", "measured"], ["quality"], ["quality", *["measured"] * 4]])
def test_roles_that_it_cannot_learn_are_refused(roles) -> None:
    with pytest.raises(ValueError, match="there must be 2 to 4"):
        PolicyDesigner(DIMENSIONS, roles)


def test_exploring_is_left_to_the_given_method_until_damages_are_known() -> None:
    asked = []

    def explore(accepts, _generator):
        choices = dict.fromkeys(NAMES, 8)
        asked.append(accepts(choices))
        return choices

    assert designer().suggest(2, explore) == [dict.fromkeys(NAMES, 8)] * 2
    assert asked == [True, False]  # the second time it runs already


def test_the_example_runs_without_optuna() -> None:
    code = """
import sys, textwrap
sys.modules["optuna"] = None  # any import of it raises
from slimfront.search.sampler import policy_designer
exec(textwrap.dedent(policy_designer.__doc__.split("::")[1]))
assert number == 7
assert not [name for name in sys.modules if name.startswith("optuna.")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
