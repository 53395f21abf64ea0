"""How many trials each sampler needs: hypervolume over trials, on paired seeds, from cached evaluations.

The tasks are three classifiers and a regressor, whose accuracy is R2. Objectives are the accuracy drop and log2 BOPs, or, with `--cost latency`, log2 of the latency over the uncompressed model's:
every policy is then lowered for its target and timed by the paired bench. A front is selected on validation samples, and on one timing,
and judged on the test split, and on another timing, as
the fraction of the hypervolume of the union of all fronts found, from three reference points: a drop of 0.10 (the floor that
constrained arms use as a constraint), 0.50 (wide) and 0.02 (tight). The baseline to name is `tpe-anchors`: multivariate TPE with the
floor as a constraint, ten uniform anchors and no policy tried twice. `--quick` takes under two minutes.
"""

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from cheap_evaluation import CheapEvaluator
from measured_latency import SECONDS, MeasuredLatency
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from rich.console import Console
from rich.table import Table
from slimfront.search.optuna.policy_sampler import PolicySampler
from slimfront.search.sampler.study_terms import KnownDamage, greedy_policies, space_dimensions
from slimfront.search.sampler.surrogate.analytic_cost import COUNTED
from slimfront.search.sampler.surrogate.surrogate import Role
from slimfront.search.sensitivity import known_damage, measured, probes
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.spaces.knobs.kind import by_halves
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.study_file.spec import StudySpec

FLOOR = 0.10
REFERENCES = {"floor": FLOOR, "wide": 0.5, "tight": 0.02}
CHECKPOINTS = (10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 400)
ANCHORS = 11
"""The uncompressed model and ten uniform policies."""

SPACE = {
    "granularity": "layer",
    "weight_bits": [2, 3, 4, 6, 8, 32],
    "activation_bits": [4, 6, 8, 32],
    "channel_sparsity": [0, 0.25, 0.5],
    "width": [1.0, 0.75, 0.5, 0.25],
}
TASKS: dict[str, dict[str, Any]] = {
    "digits-cnn": {"workload": "digits"},
    "digits-vit": {"workload": "digits-vit"},
    "digits-gru": {"workload": "digits-gru"},
    "turned-digits": {"workload": f"{Path(__file__).with_name('turned_digits.py')}:workload"},
}
SEEDED_ONLY = ("random", "nsgaii", "tpe")
"""Arms without anchors, constraint and refusal of duplicates: footnotes."""

GP_TRIALS = 50
"""Of Optuna's Gaussian process, a proposal of which takes seconds."""

WITHOUT_SENSITIVITY = (*SEEDED_ONLY, "tpe-anchors", "gp-anchors", "policy-no-sensitivity")
"""All others measure single choices first, charged as trials by processor time, and go on from the greedy path."""

ARMS = (
    *SEEDED_ONLY,
    "tpe-anchors",
    "tpe-greedy",
    "gp-anchors",
    "policy",
    "policy-no-sensitivity",
    "policy-no-residual",
    "policy-no-anchors",
    "policy-no-kl",
)


@dataclass(frozen=True)
class Cost:
    """What the accuracy drop is traded against; positive, less is better.

    Attributes:
        role: how the policy sampler knows it.
        seen: of a policy, what a search sees. judged: what its front is judged by.
        whole: of the uncompressed model.
    """

    role: Role
    seen: Callable[[Policy], float]
    judged: Callable[[Policy], float]
    whole: float


@dataclass
class Run:
    """One search: policies in the order they were evaluated; `values` are drops and log2 costs as seen."""

    arm: str
    seed: int
    policies: list[Policy] = field(default_factory=list)
    values: list[tuple[float, float]] = field(default_factory=list)
    duplicates: int = 0
    ask_s: list[float] = field(default_factory=list)
    charge: int = 0

    def first(self, count: int) -> int:
        """How many policies were evaluated when `count` trials were spent."""
        return max(0, count - self.charge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="baseline and policy only, few trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write the curves as HTML here")
    parser.add_argument("--cache", type=Path, default=Path("sample-efficiency-cache"), help="folder of past scores")
    parser.add_argument("--task", choices=TASKS, default="digits-cnn")
    parser.add_argument("--cost", choices=("bops", "latency"), default="bops")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--trials", type=int, default=400, help="of arms that are not ours")
    parser.add_argument("--our-trials", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        trials, seeds = (40, 2) if options.cost == "bops" else (16, 1)
        options.arms, options.trials, options.our_trials, options.seeds = "tpe-anchors,policy", trials, trials, seeds
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    prepared = prepared_task(options.task)
    torch.set_num_threads(1)  # two threads on models this small spend four times the processor time
    options.cache.mkdir(parents=True, exist_ok=True)
    evaluator = CheapEvaluator(prepared, options.cache / f"{options.task}.jsonl")
    with cost_of(options.cost, prepared, evaluator, options.cache / f"{options.task}.latency.jsonl") as cost:
        figures = compared(prepared, evaluator, cost, options)
    show(figures, options)
    if options.figure:
        curves(figures, options.task).write_html(options.figure, include_plotlyjs="cdn")


@contextmanager
def cost_of(name: str, prepared: PreparedStudy, evaluator: CheapEvaluator, file: Path) -> Iterator[Cost]:
    if name == "bops":
        yield Cost(COUNTED.index("bops"), evaluator.bops, evaluator.bops, evaluator.bops(Policy()))
        return
    with MeasuredLatency(prepared, file) as latency:
        yield Cost("measured", lambda p: latency.of(p, "search"), lambda p: latency.of(p, "judge"), 1.0)
        spreads = ", ".join(f"{latency.spread(purpose):.1%} for the {purpose}" for purpose in SECONDS)
        Console().print(f"intervals of timings, on either side, the median: {spreads}", highlight=False)


def compared(
    prepared: PreparedStudy, evaluator: CheapEvaluator, cost: Cost, options: argparse.Namespace
) -> dict[str, Any]:
    """The figures of all arms and seeds asked for, written out after every seed."""
    arms = options.arms.split(",")
    known, charge = sensitivity(prepared, evaluator) if set(arms) - set(WITHOUT_SENSITIVITY) else ({}, 0)
    runs, figures = [], {}
    for seed in range(options.seeds):
        for arm in arms:
            trials = options.our_trials if arm.startswith("policy") else options.trials
            trials = min(trials, GP_TRIALS) if arm == "gp-anchors" else trials
            first = ({}, 0) if arm in WITHOUT_SENSITIVITY else (known, charge)
            runs.append(search(prepared, evaluator, cost, arm, seed, trials, *first))
            Console(stderr=True).print(f"{arm} seed {seed}: {len(runs[-1].policies)} trials", highlight=False)
        figures = judged(runs, evaluator, cost)
        if options.json:
            about = {"task": options.task, "cost": options.cost, "space": SPACE}
            options.json.write_text(json.dumps({**about, **figures}, indent=1))
    return figures


def prepared_task(task: str) -> PreparedStudy:
    document = {
        "study": task, "target": "cpu-openvino", "objectives": ["accuracy_drop", "bops"], "space": SPACE,
        "budget": {"trials": 1}, **TASKS[task],
    }  # fmt: skip
    return prepare(StudySpec.from_document(document, "benchmark", Path()))


def search(
    prepared: PreparedStudy,
    evaluator: CheapEvaluator,
    cost: Cost,
    arm: str,
    seed: int,
    trials: int,
    known: KnownDamage,
    charge: int,
) -> Run:
    """Run one arm until it has evaluated `trials` policies; a duplicate costs plain arms a trial and others nothing.

    Args:
        known: what single choices damage, which took the time of `charge` trials.
    """
    plain = arm in SEEDED_ONLY
    sampler = sampler_of(arm, seed, prepared, evaluator, cost, known)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    anchors = prepared.space.anchors()[:ANCHORS] if not plain and not arm.endswith("no-anchors") else []
    for policy in [*anchors, *(by_halves(greedy_policies(prepared, known)) if known else [])]:  # as the driver has them
        study.enqueue_trial(dict(prepared.space.parameters(policy)))
    run, seen = Run(arm, seed, charge=charge), set()
    whole = evaluator.scores(Policy()).accuracy
    while len(run.policies) < run.first(trials):
        started = time.process_time()
        trial = study.ask()
        _ = trial.relative_params
        parameters = {knob.name: trial.suggest_categorical(knob.name, knob.choices) for knob in prepared.space.knobs}
        run.ask_s.append(time.process_time() - started)
        policy = prepared.space.policy(parameters)
        run.duplicates += policy.digest in seen
        if policy.digest in seen and not plain:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        seen.add(policy.digest)
        scores, paid = evaluator.scores(policy), cost.seen(policy)
        drop = whole - scores.accuracy
        if arm != "policy-no-kl":
            trial.set_user_attr("kl", scores.kl)
        if not plain:
            trial.set_constraint("accuracy_drop <= 0.1", drop - FLOOR)
        study.tell(trial, [drop, paid])
        run.policies.append(policy)
        run.values.append((drop, math.log2(paid)))
    return run


def sensitivity(prepared: PreparedStudy, evaluator: CheapEvaluator) -> tuple[KnownDamage, int]:
    """What single choices damage, and the trials that is charged as: processor time over that of a median evaluation."""
    started = time.process_time()
    known = known_damage(prepared.space, list(measured(prepared, probes(prepared.space))))
    return known, math.ceil((time.process_time() - started) / evaluator.seconds(prepared.space.anchors()[1:10]))


def sampler_of(
    arm: str, seed: int, prepared: PreparedStudy, evaluator: CheapEvaluator, cost: Cost, known: KnownDamage
) -> BaseSampler:
    if arm == "gp-anchors":
        return GPSampler(seed=seed, n_startup_trials=10)
    if arm == "random":
        return RandomSampler(seed=seed)
    if arm == "nsgaii":
        return NSGAIISampler(seed=seed, population_size=20)
    if arm.startswith("tpe"):
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=10)
    return PolicySampler(
        ["quality", cost.role],
        dimensions=space_dimensions(prepared.space, known),
        counted=evaluator.cost,
        keys=evaluator.cost.keys,
        reference=(FLOOR, cost.whole),
        implied=frozenset({"accuracy_drop <= 0.1"}),
        residual=arm != "policy-no-residual",
        seed=seed,
    )


def judged(runs: Sequence[Run], evaluator: CheapEvaluator, cost: Cost) -> dict[str, Any]:
    """Hypervolume fractions of every run at every checkpoint and reference, on the test split."""
    ceiling, whole = math.log2(cost.whole), evaluator.test_accuracy(Policy())
    tested: dict[tuple[int, int], np.ndarray] = {}
    for index, run in enumerate(runs):
        for count in (c for c in CHECKPOINTS if run.first(c) <= len(run.policies)):
            chosen = front_of(np.array(run.values[: run.first(count)]).reshape(-1, 2))
            front = [run.policies[i] for i in chosen]
            points = [(whole - evaluator.test_accuracy(p), math.log2(cost.judged(p))) for p in front]
            tested[index, count] = np.array(points).reshape(-1, 2)
    union = np.concatenate(list(tested.values()))
    best = {name: volume(union, drop, ceiling) for name, drop in REFERENCES.items()}
    rows = [
        {
            "arm": run.arm, "seed": run.seed, "charge": run.charge, "duplicates": run.duplicates, "ask_s": statistics.median(run.ask_s),
            "slowest_ask_s": max(run.ask_s),
            **{name: {count: volume(tested[index, count], drop, ceiling) / best[name]
                      for count in CHECKPOINTS if (index, count) in tested} for name, drop in REFERENCES.items()},
        }
        for index, run in enumerate(runs)
    ]  # fmt: skip
    return {"union_hypervolume": best, "runs": rows}


def front_of(values: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(moocore.is_nondominated(values))] if len(values) else []


def volume(points: np.ndarray, drop: float, ceiling: float) -> float:
    return float(moocore.hypervolume(points, ref=np.array([drop, ceiling]))) if len(points) else 0.0


def medians(figures: Mapping[str, Any], arm: str, reference: str) -> dict[int, float]:
    """Checkpoint -> median fraction over seeds."""
    runs = [run[reference] for run in figures["runs"] if run["arm"] == arm]
    return {count: statistics.median(run[count] for run in runs) for count in runs[0]}


def trials_to_reach(figures: Mapping[str, Any], arm: str, reference: str) -> list[float]:
    """Per seed, the first checkpoint at which `arm` has the most the baseline ever has; infinite where none does.

    The most, since a front may lose on the test split what it won on the one it is selected on.
    """
    goals = {run["seed"]: max(run[reference].values()) for run in figures["runs"] if run["arm"] == "tpe-anchors"}
    mine = {run["seed"]: run[reference] for run in figures["runs"] if run["arm"] == arm}
    return [min((n for n, v in mine[seed].items() if v >= goal), default=math.inf) for seed, goal in goals.items()]


def show(figures: Mapping[str, Any], options: argparse.Namespace) -> None:
    arms = list(dict.fromkeys(run["arm"] for run in figures["runs"]))
    shown = [count for count in CHECKPOINTS if count <= max(options.trials, options.our_trials)]
    for reference in REFERENCES:
        table = Table("arm", *map(str, shown), "trials to baseline's best", title=f"{options.task}, {reference}")
        for arm in arms:
            values = medians(figures, arm, reference)
            reach = trials_to_reach(figures, arm, reference)
            table.add_row(
                arm,
                *(f"{values[c]:.3f}" if c in values else "" for c in shown),
                str(statistics.median(reach)) if reach else "",
            )
        Console(width=180).print(table)
    for arm in arms:
        mine = [run for run in figures["runs"] if run["arm"] == arm]
        ask, slowest = (statistics.median(run[key] for run in mine) * 1e3 for key in ("ask_s", "slowest_ask_s"))
        Console().print(
            f"{arm}: ask {ask:.0f} ms of CPU, slowest {slowest:.0f} ms, duplicates {[r['duplicates'] for r in mine]}, "
            f"charged before the first {mine[0]['charge']}",
            highlight=False,
        )


def curves(figures: Mapping[str, Any], task: str) -> go.Figure:
    """Median fraction over trials at the floor reference, a line per arm."""
    figure = go.Figure()
    for arm in dict.fromkeys(run["arm"] for run in figures["runs"]):
        values = medians(figures, arm, "floor")
        figure.add_scatter(x=list(values), y=list(values.values()), name=arm, mode="lines+markers")
    return figure.update_layout(title=f"{task}: test hypervolume / union front's", xaxis_title="trials")


if __name__ == "__main__":
    main()
