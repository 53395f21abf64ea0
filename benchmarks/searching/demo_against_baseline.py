"""The demo against ten times as many trials of the baseline: TPE with the anchors and the constraint, without sensitivity.

Both search the shipped study `digits-demo`; every trial is really compressed, recovered and timed, and each search has a database
of its own, so that neither learns from the other. In the end the artifacts of all fronts are timed again, in turns, since a ratio
of latencies depends on the state of the machine too. Hypervolumes are fractions of the baseline's after all its trials: of drops
from their bound and of costs from the uncompressed model's, as fractions of it and as logarithms, where halving counts the same at
any size. Fronts are chosen on validation; "test" is the same fronts' drops on the test split, of those that a search confirmed.
A seed takes three quarters of an hour on two quiet cores; what is in `--folder` already is not searched again. `--quick` takes
under two minutes.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.search.run import run_search
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.studies.analysis.front import Point, pareto_front
from slimfront.studies.analysis.newest_front import objectives_of
from slimfront.studies.files.study_files import StudyFiles
from slimfront.studies.store.records import TrialRecord
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study
from slimfront.studies.study_file.spec import StudySpec

DEMO = "digits-demo"
CUTS = (15, 20, 30, 40, 100, 200)
SPLITS = {"validation": "accuracy_drop", "test": "test_accuracy_drop"}
KINDS = [f"{split}{scale}" for split in SPLITS for scale in ("", ", log")]


@dataclass(frozen=True)
class Member:
    """A point of a front.

    Attributes:
        size: its artifact's bytes over the uncompressed model's.
        drops: split -> accuracy drop; without "test" where the search did not confirm it.
    """

    artifact: Path
    size: float
    drops: dict[str, float]


@dataclass(frozen=True)
class Searched:
    """A search that has ended: its front after so many trials each, and the uncompressed model's artifact."""

    arm: str
    seed: int
    fronts: dict[int, list[Member]]
    reference: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few trials of each, which shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--folder", type=Path, default=Path("demo-against-baseline"), help="of databases and artifacts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="0 is the shipped one")
    parser.add_argument("--trials", type=int, default=400, help="of the baseline")
    options = parser.parse_args()
    demo = load_study(DEMO).replaced(timeout_s=3600)  # trials are compared, on however slow a machine
    if options.quick:
        demo, options.trials, options.seeds = demo.replaced(trials=2, workers=0), 3, [0]
        options.folder = options.folder / "quick"
    found = []
    for seed in options.seeds:
        for arm, spec in (("demo", demo), ("baseline", baseline_of(demo, options.trials))):
            folder = options.folder / f"{arm}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{folder / 'study.db'}"
            run_search(spec.replaced(seed=seed), url, folder / "artifacts", Console(stderr=True))
            with Store(url, create=False) as store:
                found.append(Searched(arm, seed, fronts(store, DEMO), folder / "artifacts" / DEMO / "reference"))
    rows = judged(prepare(demo), found)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def baseline_of(demo: StudySpec, trials: int) -> StudySpec:
    """The demo's study under TPE; the first trials are the anchors whatever the sampler."""
    document = demo.model_dump(mode="json", exclude_unset=True)
    document |= {"sampler": "tpe", "sensitivity": False, "keep": "all", "budget": {"trials": trials}}
    return StudySpec.from_document(document, "benchmark", demo.base_folder)


def fronts(store: Store, name: str) -> dict[int, list[Member]]:
    """Of the first so many trials each: the front as their search measured it."""
    study = store.get_study(name)
    whole, objectives = study.baseline["artifact_bytes"].value, objectives_of(study)
    ended = [trial for trial in store.trials(name) if trial.state != "interrupted"]

    def member(point: Point) -> Member:
        measured = {metric: measurement.value for metric, measurement in point.measurements.items()}
        files = StudyFiles(store, name)
        paths = {kind: files.path(record) for kind, record in files.newest(point.trial).items()}
        drops = {split: measured[metric] for split, metric in SPLITS.items() if metric in measured}
        return Member(paths["model"], measured["artifact_bytes"] / whole, drops)

    def front(trials: Sequence[TrialRecord]) -> list[Point]:
        feasible = [Point.of(trial, objectives) for trial in trials if trial.state == "complete"]
        return pareto_front(feasible, objectives)

    cuts = [*(cut for cut in CUTS if cut < len(ended)), len(ended)]
    return {cut: [member(point) for point in front(ended[:cut])] for cut in cuts}


def judged(prepared: PreparedStudy, found: Sequence[Searched]) -> list[dict[str, Any]]:
    """A row per search and number of trials: its front's volume of each kind; None where not all of it was scored so."""
    (bound,) = prepared.spec.constraints
    members = (member for search in found for front in search.fronts.values() for member in front)
    latencies = timed(prepared, found[0].reference, sorted({member.artifact for member in members}))

    def volume(front: Sequence[Member], split: str, *, log: bool) -> float | None:
        if any(split not in member.drops for member in front):
            return None
        costs = np.array([[latencies[member.artifact], member.size] for member in front])
        drops = [member.drops[split] for member in front]
        points = np.column_stack([drops, np.log(costs) if log else costs])
        return float(moocore.hypervolume(points, ref=[bound.bound, *[0.0 if log else 1.0] * 2]))

    return [
        {"arm": search.arm, "seed": search.seed, "trials": cut}
        | {kind: volume(front, kind.split(",")[0], log=kind.endswith("log")) for kind in KINDS}
        for search in found
        for cut, front in search.fronts.items()
    ]


def timed(prepared: PreparedStudy, reference: Path, artifacts: Sequence[Path]) -> dict[Path, float]:
    """Latency of each artifact over the uncompressed model's, in an order that no search has to itself."""
    mixed = random.Random(0).sample(artifacts, k=len(artifacts))
    with prepared.bench(Artifact.of(reference / f"model{prepared.context.runtime.suffix}")) as bench:
        return {
            path: 1 / bench.time(path).speedup
            for path in track(mixed, "timing the fronts", console=Console(stderr=True))
        }


def show(rows: list[dict[str, Any]]) -> None:
    """Fractions of the volumes that the same seed's baseline has in the end."""
    table = Table("seed", "arm", "trials", *KINDS, title="hypervolume, of the baseline's in the end")
    whole = {row["seed"]: row for row in rows if row["arm"] == "baseline"}  # the last one stays
    for row in rows:
        shares = ("" if row[kind] is None else f"{row[kind] / whole[row['seed']][kind]:.3f}" for kind in KINDS)
        table.add_row(str(row["seed"]), row["arm"], str(row["trials"]), *shares)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
