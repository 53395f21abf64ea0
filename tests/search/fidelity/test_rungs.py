"""Successive halving: who goes on, by hand and in real searches."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.compression.recovery.recover import recover, recover_by_rungs
from slimfront.core.errors import StudyFileError
from slimfront.core.measurement import Measurement
from slimfront.core.metrics import METRICS
from slimfront.search.driver import Search
from slimfront.search.execution.base import run_trials
from slimfront.search.execution.local import run_local
from slimfront.search.fidelity.halving import SuccessiveHalving, priorities
from slimfront.search.fidelity.rungs import Rungs
from slimfront.search.optuna.attributes import STOPPED, STOPPED_EPOCHS
from slimfront.search.optuna.policy_sampler import PolicySampler
from slimfront.search.optuna.trial_reader import TrialReader
from slimfront.search.sampler.dimensions import RECOVERY_KIND, recovery_dimension, search_dimension
from slimfront.search.sampler.study_terms import learned_dimensions
from slimfront.search.sampler.trial_log import TrialLog
from slimfront.search.trials.prepared_study import prepare
from slimfront.search.trials.recovered import structure
from slimfront.search.trials.worker import Stage
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.studies.analysis.budget_rules import ended
from slimfront.studies.reports.progress import reason_rows, states_text
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.parts import RungsSpec
from slimfront.studies.study_file.spec import StudySpec

Spec = Callable[..., StudySpec]
SPACE = {
    "granularity": "model",
    "weight_bits": [4, 6, 8, 32],
    "activation_bits": [8, 32],
    "width": [1.0, 0.75, 0.5, 0.25],
    "recovery_epochs": [4],
}


@pytest.fixture
def store(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        yield opened


# The order, and the rule


def test_ranks_come_first_and_points_far_from_one_another_within_a_rank() -> None:
    front = [(0.0, 1.0), (0.1, 0.8), (0.5, 0.4), (1.0, 0.0)]
    beaten = [(1.0, 1.0), (0.6, 0.6)]
    places = priorities(np.array([*front, *beaten]))
    # (0.5, 0.4) is nearest to the best corner; (0, 1) is 0.78 from it and (1, 0) 0.64, the last 0.22 from (0, 1).
    assert places.tolist() == [1, 3, 0, 2, 5, 4]


def test_the_order_does_not_depend_on_units() -> None:
    points = np.random.default_rng(0).random((12, 3))
    assert priorities(points * [1.0, 1e9, 1e-6]).tolist() == priorities(points).tolist()


def test_one_in_three_goes_on_once_three_have_come() -> None:
    halving = SuccessiveHalving([1, 1], 3)
    verdicts = [halving.arrive(0, (value, value)) for value in (5.0, 6.0, 7.0, 8.0, 4.0, 5.5, 4.5)]
    assert [verdict.is_promising for verdict in verdicts] == [True, True, True, False, True, False, True]
    assert (verdicts[3].place, verdicts[3].of, verdicts[3].kept) == (4, 4, 2)
    assert halving.arrive(1, (9.0, 9.0)).is_promising  # each rung by itself


def test_maximised_objectives_are_mirrored() -> None:
    halving = SuccessiveHalving([-1, 1], 2)
    assert [halving.arrive(0, (a, 1.0)).is_promising for a in (0.9, 0.8, 0.7, 0.95)] == [True, True, False, True]


def measured(kl: float) -> dict[str, Measurement]:
    return {n: Measurement(n, v, v, v, METRICS[n].unit) for n, v in (("kl", kl), ("bops", 1.0))}


def test_who_was_stopped_goes_on_once_it_is_among_the_best(tiny_spec: Spec) -> None:
    rungs = Rungs(tiny_spec(objectives=["kl", "bops"], rungs={"recovery": [0, 0.5, 1], "reduction": 2}))
    for number, kl in enumerate((0.5, 0.6, 0.7, 0.8)):  # 0 and 1 are the best half of all four
        verdict = rungs.decision(number, Stage("scored", 0, final=False), measured(kl))
        assert verdict.is_promising == (number < 2)
        if number >= 2:
            rungs.stop(number, 0)
    assert rungs.promoted() is None
    rungs.decision(4, Stage("scored", 0, final=False), measured(0.9))
    rungs.stop(4, 0)
    assert rungs.promoted() == 2  # the third of five, of whom three go on
    assert (rungs.next_in_line(2), rungs.next_in_line(8)) == ([2, 3], [2, 3, 4])
    rungs.take_up(2)
    assert rungs.promoted() is None
    assert rungs.next_in_line(8) == [3, 4]
    rungs.give_back(2)
    assert (rungs.promoted(), rungs.next_in_line(8)) == (2, [2, 3, 4])
    rungs.take_up(2)
    assert rungs.promoted() is None
    assert rungs.decision(5, Stage("scored", 0, final=False), measured(0.7), retry_of=2) is None  # it was there before
    assert rungs.decision(5, Stage("recovered", 1, final=False), measured(0.4), retry_of=2).of == 1


def test_a_recovery_that_has_ended_is_compared_with_nobody(tiny_spec: Spec) -> None:
    rungs = Rungs(tiny_spec(objectives=["kl", "bops"], rungs={"recovery": [0.5, 1], "reduction": 2}))

    def verdict(kl: float, rung: int = 1, final: bool = False, name: str = "recovered"):
        return rungs.decision(0, Stage(name, rung, final=final), measured(kl))

    assert verdict(0.1, final=True) is None
    assert verdict(0.1, rung=0, name="scored") is None  # the study does not look before the first epoch
    found = [verdict(kl) for kl in (0.2, 0.3, 0.4)]
    assert [(v.place, v.of, v.is_promising) for v in found] == [(1, 1, True), (2, 2, True), (3, 3, False)]
    assert verdict(0.5, name="timed") is None


# The study file


def test_marks_are_epochs_of_the_recovery_at_hand() -> None:
    rungs = RungsSpec(recovery=(0.0, 0.25, 0.5, 1.0))
    assert [rungs.marks(epochs) for epochs in (0, 1, 2, 8)] == [
        (),
        (0.25, 0.5),  # of the training data
        (0.5, 1),
        (2, 4),
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rungs": {"recovery": [0, 0.5]}}, "fractions of the recovery rise and end with 1"),
        ({"rungs": {"recovery": [0.5, 0.25, 1]}}, "fractions of the recovery rise and end with 1"),
        ({"rungs": {}, "recovery": {"steps": ["quantize", "prune", "train"]}}, "rungs needs recovery.steps"),
        ({"reuse_recovered": True, "recovery": {"steps": ["train", "prune"]}}, "reuse_recovered needs recovery.steps"),
    ],
)
def test_rungs_that_make_no_sense_are_refused(tiny_spec: Spec, changes: dict, problem: str) -> None:
    with pytest.raises(StudyFileError, match=problem):
        tiny_spec(**changes)


# Training goes on from where it was


def test_looking_at_a_recovery_does_not_change_it(tiny_spec: Spec) -> None:
    workload = prepare(tiny_spec()).context.workload
    policy = Policy(layers={"conv": LayerPolicy(sparsity=0.5)}, recovery=Recovery(4, patience=0))

    def student() -> torch.nn.Module:
        return pruned_copy(workload.model, workload.example_input, policy, [])

    whole = recover(student(), workload, policy, seed=3).state_dict()
    looks = []
    for model, epochs in recover_by_rungs(student(), workload, policy, 3, 64, marks=(0.3, 1, 2)):
        assert not model.training
        torch.rand(7)  # whatever is drawn meanwhile
        looks.append((epochs, model.conv.weight.detach().clone()))
    assert [epochs for epochs, _ in looks] == [0.3, 1, 2, 4]
    assert not any(torch.equal(before, after) for (_, before), (_, after) in pairwise(looks))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


# Searches


def test_structure_is_all_but_bits() -> None:
    int8, int4 = ({"conv": LayerPolicy(bits, bits, 0.5)} for bits in (8, 4))
    assert structure(Policy(0.5, layers=int8, recovery=Recovery(2))) == structure(
        Policy(0.5, layers=int4, recovery=Recovery(2))
    )
    assert structure(Policy(0.5, layers=int8, recovery=Recovery(2))) != structure(
        Policy(0.5, layers=int8, recovery=Recovery(1))
    )
    assert structure(Policy(0.5, layers=int8)) is None


def stopped_properly(store: Store) -> None:
    """What must hold of every study with rungs, however it ran."""
    trials = store.trials("tiny")
    stopped = [trial for trial in trials if trial.state == "pruned"]
    finished = [trial for trial in trials if trial.state == "complete" and trial.policy.recovery.epochs]
    assert stopped
    assert finished
    assert {trial.state for trial in stopped} == {"pruned"}
    assert f"{len(stopped)} pruned" in states_text(trials)
    for trial in finished:
        rungs = [r.rung for r in store.measurement_history("tiny", trial.number) if r.measurement.name == "kl"]
        assert rungs == [0, 1, 2]
    for trial in stopped:
        rungs = [r.rung for r in store.measurement_history("tiny", trial.number) if r.measurement.name == "kl"]
        assert trial.rung == rungs[-1]
        assert trial.reason.startswith(f"stopped at rung {rungs[-1]}, {(0, 2)[rungs[-1]]} of 4 epochs: place ")
    in_optuna = {trial.number: trial for trial in optuna.load_study(study_name="tiny", storage=store.url).trials}
    for trial in stopped:
        assert in_optuna[trial.number].state.name == "PRUNED"
        assert in_optuna[trial.number].constraints[STOPPED] > 0
        assert in_optuna[trial.number].user_attrs["kl"] == trial.measurements["kl"].value
        assert in_optuna[trial.number].user_attrs[STOPPED_EPOCHS] in (0, 2)
    assert not {trial.number for trial in stopped} & set(store.current_front("tiny").members)
    assert any("more training was not worth it" in text for _, _, text in reason_rows(trials))


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
@pytest.mark.parametrize("workers", [0, 2])
def test_unpromising_trials_stop_and_are_learned_from(
    workers: int, tiny_spec: Spec, store: Store, tmp_path: Path
) -> None:
    spec = tiny_spec(
        space=SPACE, objectives=["kl", "bops"], budget={"trials": 9}, workers=workers, sampler="tpe" if workers else "policy",
        rungs={"recovery": [0, 0.5, 1], "reduction": 2},
    )  # fmt: skip
    search = Search(prepare(spec), store, tmp_path / "artifacts")
    if workers:
        from slimfront.search.execution.ray_runner import RayRunner

        run_trials(search, RayRunner(search, workers))
    else:
        run_local(search)
    assert not store.running_trials("tiny")
    stopped_properly(store)
    trials = store.trials("tiny")
    assert len({trial.digest for trial in trials}) == 9
    again = [trial for trial in trials if trial.retry_of is not None]
    assert len(trials) - len(again) == search.finished == ended(trials) == 9  # who goes on is charged once
    assert search.is_over
    assert Search(search.prepared, store, tmp_path / "artifacts").is_over  # also when it is opened again
    for trial in again:
        assert store.get_trial("tiny", trial.retry_of).state == "pruned"


@pytest.mark.usefixtures("short_timings")
def test_a_trial_that_goes_on_when_the_budget_is_spent_is_not_lost_with_its_worker(
    tiny_spec: Spec, store: Store, tmp_path: Path
) -> None:
    rungs = {"recovery": [0, 0.5, 1], "reduction": 2}
    spec = tiny_spec(space=SPACE, objectives=["kl", "bops"], budget={"trials": 5}, rungs=rungs, sensitivity=False)
    search = Search(prepare(spec), store, tmp_path / "artifacts")
    tried = []
    for kl in (
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ):  # the third of five is the last that goes on, and was stopped when it was the third of three
        proposal = search.propose()
        tried.append(proposal.policy.digest)
        if search.advance(proposal.number, Stage("scored", 0, list(measured(kl).values()), final=False)):
            search.finish(proposal.number)
    assert search.finished == 5
    again = search.propose()
    assert again.policy.digest == tried[2]
    assert search.propose() is None
    search.lose(again.number, "its node is gone")
    assert not search.is_over
    once_more = search.propose()
    assert (once_more.policy.digest, once_more.number != again.number) == (tried[2], True)
    search.record(once_more.number, Stage("recovered", 2, list(measured(0.1).values())))
    search.finish(once_more.number)
    assert (search.is_over, search.finished) == (True, 5)


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_bits_only_changes_start_from_the_same_recovered_weights(tiny_spec: Spec, store: Store, tmp_path: Path) -> None:
    space = {"granularity": "model", "weight_bits": [4, 8], "width": [0.5], "recovery_epochs": [2]}
    runs = {}
    for reuse in (True, False):
        name = f"reuse-{reuse}"
        spec = tiny_spec(
            study=name, space=space, objectives=["kl", "bops"], budget={"trials": 2}, reuse_recovered=reuse
        )
        run_local(Search(prepare(spec), store, tmp_path / "artifacts"))
        runs[reuse] = store.trials(name)
    assert [trial.reason for trial in runs[True]] == [None, "recovered weights of trial 0"]
    assert [trial.reason for trial in runs[False]] == [None, None]
    for reused, trained in zip(runs[True], runs[False], strict=True):
        assert reused.policy == trained.policy
        assert reused.worker.endswith(f", threads {torch.get_num_threads()}")
        assert reused.measurements["kl"].value == pytest.approx(trained.measurements["kl"].value, rel=1e-4)


def test_a_stopped_trial_teaches_the_damage_of_the_recovery_it_had() -> None:
    """Epochs 0, 2 and 4 leave 1, 1/2 and 1/4 of the damage; stopped at 2 of 4, a policy's divergence is that of 2."""
    sampler = PolicySampler(["quality", "measured"], neutral={"a.weight_bits": 32, "r.recovery_epochs": 0}, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for number in range(12):
        trial = study.ask()
        bits = trial.suggest_categorical("a.weight_bits", (2, 4, 8, 32))
        epochs = trial.suggest_categorical("r.recovery_epochs", (0, 2, 4))
        stopped = epochs == 4 and number % 2 == 0
        kl = 4.0 ** (2 - bits) / (1 + (2 if stopped else epochs) / 2)
        trial.set_user_attr("kl", kl)
        if stopped:
            trial.set_user_attr(STOPPED_EPOCHS, 2)
            trial.set_constraint(STOPPED, 1.0)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, [kl, bits])
    assert len({tuple(trial.params.values()) for trial in study.trials[4:]}) >= 7  # those stopped are not asked again
    log = TrialLog([search_dimension("a.weight_bits", "weight_bits", (2, 4, 8, 32), 32),
                    search_dimension("r.recovery_epochs", RECOVERY_KIND, (0, 2, 4), 0)])  # fmt: skip
    log.update(*TrialReader().read(study))
    for trial, codes in zip(study.trials, log.trained_codes(), strict=True):
        assert (0, 2, 4)[codes[1]] == trial.user_attrs.get(STOPPED_EPOCHS, trial.params["r.recovery_epochs"])


NAMES = [f"layer{index}.weight_bits" for index in range(4)]
BITS = (2, 3, 4, 6, 8, 32)


def predicted_error(says_when: bool) -> float:
    """Error of the log damage of recovered policies after a study in which four epochs leave a fifth of all damage and every
    other trial was stopped before any, which it says or does not."""
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    dimensions = [*knobs, recovery_dimension(RECOVERY_KIND, (4,), (0.0,))]
    sampler = PolicySampler(["quality", "measured"], dimensions=dimensions, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for number in range(14):
        trial = study.ask({name: CategoricalDistribution(BITS) for name in NAMES})
        assert set(trial.params) == set(NAMES)  # the recovery, which is always the same, is no parameter
        damage = sum((index + 1) * 4.0 ** (2 - trial.params[name]) for index, name in enumerate(NAMES))
        stopped = number % 2 == 1
        trial.set_user_attr("kl", damage if stopped else damage / 5)
        if stopped and says_when:
            trial.set_user_attr(STOPPED_EPOCHS, 0)
        values = None if stopped else [damage / 5, sum(trial.params.values())]
        study.tell(trial, values, TrialState.PRUNED if stopped else None)
    unseen = np.hstack([np.random.default_rng(0).integers(1, 6, size=(200, 4)), np.zeros((200, 1), dtype=int)])
    nats = np.arange(1, 5) * 4.0 ** (2 - np.array((*BITS[:-1], 99))[unseen[:, :4]])
    designer = sampler._designer
    assert designer is not None
    return float(
        np.sqrt(np.mean((designer._surrogate.mean.predict(unseen) - np.log(1e-3 + nats.sum(axis=1) / 5)) ** 2))
    )


def test_a_stopped_trial_says_nothing_wrong_of_the_only_recovery_there_is() -> None:
    assert predicted_error(says_when=True) < min(0.25, predicted_error(says_when=False) / 2)


@pytest.mark.parametrize(
    ("offered", "recovery", "expected"),
    [([4], [0, 0.5, 1], (4, 0, 2)), ([4], [0.5, 1], (4, 2)), ([0, 2, 4], [0, 0.5, 1], (0, 2, 4, 1))],
)
def test_recoveries_that_trials_are_stopped_after_are_learned_at_and_not_proposed(
    tiny_spec: Spec, offered: list[int], recovery: list[float], expected: tuple[float, ...]
) -> None:
    prepared = prepare(tiny_spec(space={**SPACE, "recovery_epochs": offered}, rungs={"recovery": recovery}))
    (knob,) = (knob for knob in learned_dimensions(prepared) if knob.kind == RECOVERY_KIND)
    assert (knob.choices, knob.offered) == (expected, len(offered))
    kinds = [knob.kind for knob in learned_dimensions(prepare(tiny_spec(space={**SPACE, "recovery_epochs": offered})))]
    assert kinds.count(RECOVERY_KIND) == (len(offered) > 1)  # without rungs the knobs alone
