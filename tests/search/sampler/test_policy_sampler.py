"""The policy sampler as an Optuna sampler, on functions whose fronts are known."""

import math
import textwrap
from pathlib import Path

import moocore
import numpy as np
import optuna
import pytest
from slimfront.search.optuna import policy_sampler
from slimfront.search.optuna.attributes import FALLBACK
from slimfront.search.optuna.policy_sampler import PolicySampler
from slimfront.search.sampler.designer import TransferredTrial

KNOBS = 12
BITS = (2, 3, 4, 6, 8, 32)
NAMES = [f"layer{index:02d}.weight_bits" for index in range(KNOBS)]
NEUTRAL = dict.fromkeys(NAMES, 32)
generator = np.random.default_rng(3)
HURT, SIZE = generator.lognormal(-1, 1, KNOBS), generator.lognormal(0, 1, KNOBS)


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def outcome(bits) -> tuple[float, float, float]:
    """KL, accuracy drop and cost of a network whose layers' damage adds up."""
    kl = sum(hurt * 4.0 ** (2 - b) for hurt, b in zip(HURT, bits, strict=True) if b < 32)
    return kl, 1 - math.exp(-kl / 3), float(SIZE @ np.array(bits))


def searched(sampler, trials: int, objectives: int = 2, directions=("minimize",) * 4, attributes: bool = True):
    study = optuna.create_study(directions=list(directions[:objectives]), sampler=sampler)
    for bits in BITS[::-1]:
        study.enqueue_trial(dict.fromkeys(NAMES, bits))
    for _ in range(trials):
        trial = study.ask()
        bits = [trial.suggest_categorical(name, BITS) for name in NAMES]
        kl, drop, cost = outcome(bits)
        if attributes:
            trial.set_user_attr("kl", kl)
        study.tell(trial, [drop, cost, max(bits), sum(b > 3 for b in bits)][:objectives])
    return study


def volume(study) -> float:
    points = np.array([(t.values[0], math.log(t.values[1])) for t in study.trials if t.values])
    return moocore.hypervolume(points, ref=np.array([0.1, math.log(32 * SIZE.sum())]))


def test_it_beats_tpe_where_damage_adds_up():
    ours = searched(
        PolicySampler(["quality", "measured"], neutral=NEUTRAL, reference=(0.1, 32 * SIZE.sum()), seed=0), 30
    )
    tpe = [searched(optuna.samplers.TPESampler(seed=seed, multivariate=True), 60) for seed in range(3)]
    assert volume(ours) > max(map(volume, tpe))
    assert len({tuple(t.params.values()) for t in ours.trials}) == len(ours.trials)  # no policy twice


@pytest.mark.parametrize("objectives", [3, 4])
def test_it_takes_more_objectives_without_a_word(objectives: int, recwarn):
    sampler = PolicySampler(["quality", *["measured"] * (objectives - 1)], neutral=NEUTRAL, seed=0)
    study = searched(sampler, 10, objectives)
    assert FALLBACK not in study.user_attrs
    assert len({tuple(t.params.values()) for t in study.trials}) == 10


def test_it_learns_from_the_drop_where_no_divergence_is_noted():
    sampler = PolicySampler(["quality", "measured"], neutral=NEUTRAL, reference=(0.1, 32 * SIZE.sum()), seed=0)
    study = searched(sampler, 16, attributes=False)
    assert volume(study) > volume(searched(optuna.samplers.RandomSampler(seed=0), 16))


def test_maximised_objectives_are_mirrored():
    def best(directions, sign):
        sampler = PolicySampler(
            ["quality", "measured"], neutral=NEUTRAL, seed=0, reference=(sign * 0.1, 32 * SIZE.sum())
        )
        study = optuna.create_study(directions=directions, sampler=sampler)
        for bits in BITS[::-1]:
            study.enqueue_trial(dict.fromkeys(NAMES, bits))
        for _ in range(10):
            trial = study.ask()
            kl, drop, cost = outcome([trial.suggest_categorical(name, BITS) for name in NAMES])
            trial.set_user_attr("kl", kl)
            study.tell(trial, [sign * drop, cost])
        return [trial.params for trial in study.trials]

    assert best(["minimize", "minimize"], 1) == best(["maximize", "minimize"], -1)


def test_a_parameter_of_one_branch_only_is_proposed_there():
    sampler = PolicySampler(["quality", "measured"], neutral={"a.bits": 32, "b.bits": 32}, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for _ in range(15):
        trial = study.ask()
        first = trial.suggest_categorical("a.bits", BITS)
        second = trial.suggest_categorical("b.bits", BITS) if first < 32 else 32
        kl = 4.0**-first + 4.0**-second
        trial.set_user_attr("kl", kl)
        study.tell(trial, [kl, first + second])
    assert FALLBACK not in study.user_attrs
    assert {len(trial.params) for trial in study.trials} == {1, 2}


@pytest.mark.parametrize(
    ("roles", "suggest", "reason"),
    [
        pytest.param(["measured", "measured"], "int", "no objective follows the damage", id="no quality"),
        pytest.param(["quality", "measured", "measured"], "int", "2 objectives for 3 roles", id="roles"),
        pytest.param(["quality", "measured"], "float", "parameter x is not discrete", id="continuous"),
    ],
)
def test_where_its_assumptions_fail_tpe_proposes_and_it_says_so(roles, suggest, reason):
    study = optuna.create_study(directions=["minimize"] * 2, sampler=PolicySampler(roles, seed=0))

    def two_trials() -> None:
        for _ in range(2):
            trial = study.ask()
            x = trial.suggest_int("x", 0, 9) if suggest == "int" else trial.suggest_float("x", 0, 9)
            study.tell(trial, [x, -x])

    with pytest.warns(UserWarning, match=reason):
        two_trials()
    assert reason in study.user_attrs[FALLBACK]


def test_a_constraint_on_something_else_is_kept():
    """Cost may not exceed half of full size though no objective says so: later proposals mostly keep it."""
    bound = 8 * SIZE.sum()
    sampler = PolicySampler(["quality", "measured"], neutral=NEUTRAL, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for bits in BITS[::-1]:
        study.enqueue_trial(dict.fromkeys(NAMES, bits))
    kept = []
    for _ in range(24):
        trial = study.ask()
        bits = [trial.suggest_categorical(name, BITS) for name in NAMES]
        kl, drop, cost = outcome(bits)
        trial.set_user_attr("kl", kl)
        trial.set_constraint("cost", cost - bound)
        study.tell(trial, [drop, max(bits)])
        kept.append(cost <= bound)
    assert sum(kept[12:]) >= 8


def test_earlier_trials_teach_damage_and_cost_but_are_no_trials_of_this_study():
    draw = np.random.default_rng(5)
    transferred = []
    for _ in range(60):
        bits = [BITS[index] for index in draw.integers(2, len(BITS), size=KNOBS)]
        kl, _, cost = outcome(bits)
        transferred.append(TransferredTrial(dict(zip(NAMES, bits, strict=True)), kl, (None, cost)))

    def found(transferred):
        return volume(
            searched(
                PolicySampler(
                    ["quality", "measured"],
                    neutral=NEUTRAL,
                    reference=(0.1, 32 * SIZE.sum()),
                    transferred=transferred,
                    seed=0,
                ),
                14,
            )
        )

    assert found(transferred) > found([])


def test_a_policy_that_failed_is_not_proposed_again():
    names = NAMES[:4]
    study = optuna.create_study(
        directions=["minimize"] * 2,
        sampler=PolicySampler(["quality", "measured"], neutral=dict.fromkeys(names, 32), seed=0),
    )

    def objective(trial):
        bits = [trial.suggest_categorical(name, [4, 8, 32]) for name in names]
        if bits == [8] * 4:
            raise RuntimeError
        kl = sum({4: 0.05, 8: 0.0005, 32: 0.0}[b] * (i + 1) for i, b in enumerate(bits))
        trial.set_user_attr("kl", kl)
        return kl, float(sum(bits))

    study.enqueue_trial(dict.fromkeys(names, 32))
    study.enqueue_trial(dict.fromkeys(names, 8))
    study.optimize(objective, n_trials=30, catch=(RuntimeError,))
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 30


def test_tpe_proposes_while_the_surrogate_has_no_skill_and_that_is_said_once():
    """The first 14 qualities are noise, the damages of the next are not: the surrogate takes over."""
    noise = np.random.default_rng(0)
    sampler = PolicySampler(["quality", "measured"], neutral=NEUTRAL, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    said = []

    def search() -> None:
        for number in range(60):
            trial = study.ask()
            bits = [trial.suggest_categorical(name, BITS) for name in NAMES]
            kl, _, cost = outcome(bits)
            trial.set_user_attr("kl", noise.lognormal(1, 0.7) if number < 12 else kl)
            study.tell(trial, [kl, cost])
            said.append(sampler.fallback is not None)

    with pytest.warns(UserWarning, match="leaves proposing to TPE: .* of trials left out") as warned:
        search()
    assert len(warned) == 1
    assert not any(said[:10])
    assert any(said[10:20])
    assert not said[-1]
    assert study.user_attrs[FALLBACK] is None
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 60


def docs_example() -> str:
    page = (Path(policy_sampler.__file__).parents[2] / "docs" / "explanation" / "search.md").read_text(encoding="utf-8")
    return page.split("## The sampler in an Optuna study of your own")[1].split("```python")[1].split("```")[0]


@pytest.mark.parametrize(
    "example", [docs_example(), textwrap.dedent(policy_sampler.__doc__.split("::")[1])], ids=["docs", "docstring"]
)
def test_the_example_runs_as_it_stands(example: str):
    names: dict = {}
    exec(example, names)
    assert len(names["study"].trials) == 8
