"""Which trials of a long study the sampler learns from."""

import moocore
import numpy as np
from slimfront.search.sampler.designer import CompletedTrial, Outcome
from slimfront.search.sampler.dimensions import search_dimension
from slimfront.search.sampler.learned_trials import MOST, ROOM, LearnedTrials
from slimfront.search.sampler.policy_designer import PolicyDesigner

KNOBS = [search_dimension(f"l{index}.weight_bits", "weight_bits", (3, 4, 8, 32), neutral=32) for index in range(6)]


def trials(count: int, seed: int = 0) -> list[CompletedTrial]:
    """Random policies; every tenth breaks a constraint, every seventh was stopped early."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        choices = {knob.name: knob.choices[int(generator.integers(4))] for knob in KNOBS}
        damage = sum((1 + index) * 4.0 ** (2 - bits) for index, bits in enumerate(choices.values()))
        stopped = number % 7 == 3
        made.append(
            CompletedTrial(
                number,
                choices,
                Outcome.PRUNED if stopped else Outcome.COMPLETE,
                (1 - np.exp(-damage / 3), float(sum(choices.values()))),
                damage,
                {"seconds": 1.0 if number % 10 == 1 else -1.0},
            )
        )
    return made


def front(some: list[CompletedTrial]) -> set[int]:
    fine = [t for t in some if t.outcome is Outcome.COMPLETE and t.violations["seconds"] <= 0]
    kept = moocore.is_nondominated(np.array([t.values for t in fine], dtype=float))
    return {trial.number for trial, keep in zip(fine, kept, strict=True) if keep}


def test_a_study_of_ordinary_length_is_learned_from_as_a_whole() -> None:
    learned = LearnedTrials([1, 1])
    made = trials(MOST + ROOM)
    for trial in reversed(made):
        learned.add([trial])
    assert learned.trials == made
    assert learned.left_out == 0


def test_of_a_long_one_the_front_is_kept_and_every_choice_stays_known() -> None:
    learned, made = LearnedTrials([1, 1]), trials(5000)
    for trial in made:
        learned.add([trial])
        assert len(learned.trials) <= MOST + ROOM
    assert learned.left_out + len(learned.trials) == len(made)
    assert front(made) <= {trial.number for trial in learned.trials}
    assert any(trial.outcome is Outcome.PRUNED for trial in learned.trials)
    assert any(trial.violations["seconds"] > 0 for trial in learned.trials)
    for knob in KNOBS:
        assert {trial.choices[knob.name] for trial in learned.trials} == set(knob.choices)


def test_nothing_that_was_left_out_is_proposed_again() -> None:
    designer = PolicyDesigner(KNOBS, ["quality", "measured"], seed=0)
    made = trials(2500)
    designer.update(made, running=[])
    tried = {tuple(trial.choices.values()) for trial in made}
    proposed = designer.suggest(20)
    assert len(proposed) == 20
    assert not tried & {tuple(choices.values()) for choices in proposed}
