"""How much training rungs and reused weights save a search: the hypervolume of whole searches over the seconds of training.

The policy sampler searches a digits workload (channels, width, weight bits; eight epochs of recovery a trial) under the driver
that every study has. One arm recovers every trial to its end; the others have rungs, reuse recovered weights of the same
structure, or both. A front is selected on validation and judged on the test split, from a drop of 0.10 and the uncompressed
model's BOPs, by fully recovered policies alone; training counts as processor time. Each structure is trained once and kept on
disk, so that all arms and seeds see the same weights and seconds. Bits are simulated, activations stay whole, no artifact is
made. `--quick` takes under two minutes.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cheap_evaluation import stacked
from rich.console import Console
from rich.table import Table
from rungs import EPOCHS, FLOOR, LOOKS, SPACE, Curve, Race, at, log2_bops, rounded, volume, whole_log2_bops
from slimfront.compression.pruning.prune import pruned_copy, reestimate_batch_norm
from slimfront.compression.recovery.recover import recover_by_rungs
from slimfront.core.measurement import Measurement
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.search.driver import Search
from slimfront.search.proposal import Proposal
from slimfront.search.sampler.study_terms import cost_of
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.search.trials.recovered import structure
from slimfront.search.trials.worker import Stage
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from torch import Tensor, nn
from torch.nn import functional

MORE = 2
"""Times as many policies come by with rungs as are fully recovered without."""

END = len(LOOKS.recovery) - 1
"""Place of the last look."""

RUNGS = {"recovery": [0, 0.25, 1]}
ARMS: dict[str, dict[str, Any]] = {
    "full recovery": {},
    "reuse": {"reuse_recovered": True},
    "rungs": {"rungs": RUNGS},
    "rungs, reuse": {"rungs": RUNGS, "reuse_recovered": True},
}


class Trainer:
    """Recovers policies of a workload, each structure once, and scores them at `LOOKS`; `folder` keeps both."""

    def __init__(self, prepared: PreparedStudy, folder: Path) -> None:
        workload = prepared.context.workload
        self._prepared, self._folder, self._file = prepared, folder, folder / "scores.jsonl"
        self._data = {split: stacked(getattr(workload, split)) for split in ("validation", "test")}
        with torch.no_grad():
            self._reference = {split: workload.model.eval()(inputs) for split, (inputs, _) in self._data.items()}
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._scores = {tuple(key): score for key, score in map(json.loads, lines)}
        self._cost, self._models = cost_of(prepared), dict[str, nn.Module]()

    def weights(self, policy: Policy) -> Path:
        """Of a policy's structure at every look, with the seconds of training behind them; trained now if they were not before."""
        kept = structure(policy)
        assert kept is not None  # every policy is recovered, and no weights are coded
        file = self._folder / f"{kept.digest}.pt"
        if not file.exists():
            written = file.with_suffix(f".{time.time_ns()}")
            torch.save(list(self._trained(policy)), written)
            written.replace(file)
        return file

    def seconds(self, policy: Policy) -> list[float]:
        """Of training, up to each look."""
        return [seconds for _, seconds in torch.load(self.weights(policy))]

    def score(self, policy: Policy, look: int, split: str) -> tuple[float, float]:
        """A policy's accuracy drop, and its KL from the uncompressed outputs, in nats."""
        key = policy.digest, look, split
        if key not in self._scores:
            weights = self.weights(policy)
            if weights.stem not in self._models:
                self._models[weights.stem] = self._pruned(policy)
            model = self._models[weights.stem]
            model.load_state_dict(torch.load(weights)[look][0])
            (inputs, targets), reference = self._data[split], self._reference[split]
            with torch.no_grad(), rounded(model.eval(), policy) as copied:
                outputs = copied(inputs)
            lost = (reference.argmax(1) == targets).double().mean() - (outputs.argmax(1) == targets).double().mean()
            kl = functional.kl_div(
                outputs.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean"
            )
            self._scores[key] = float(lost), min(float(kl), 50.0)
            with self._file.open("a") as file:
                file.write(json.dumps([key, self._scores[key]]) + "\n")
        return self._scores[key]

    def log2_bops(self, policy: Policy) -> float:
        """As counted for any point of the space."""
        return log2_bops(self._cost, self._prepared.space, policy)

    def _pruned(self, policy: Policy) -> nn.Module:
        workload = self._prepared.context.workload
        return pruned_copy(workload.model, workload.example_input, policy, self._prepared.groups)

    def _trained(self, policy: Policy) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Weights and seconds at each look."""
        workload, model, spent = self._prepared.context.workload, self._pruned(policy), 0.0
        reestimate_batch_norm(model, workload.calibration)
        yield _copied(model), spent
        started = time.process_time()
        for trained, _ in recover_by_rungs(model, workload, policy, 0, 64, LOOKS.marks(policy.recovery.epochs)):
            spent += time.process_time() - started
            yield _copied(trained), spent
            started = time.process_time()


class Runner:
    """Runs trials of a search as `slimfront.search.execution.local` does, from what `trainer` has on disk."""

    def __init__(self, search: Search, trainer: Trainer, ceiling: float) -> None:
        self._search, self._trainer, self._ceiling = search, trainer, ceiling
        self._spent = 0.0
        self._finished: list[Curve] = []

    def run(self) -> Race:
        """The search to its end."""
        found = Race([], [])
        while proposal := self._search.propose():
            for stage in self._stages(proposal):
                if not self._search.advance(proposal.number, stage):
                    break
            else:
                self._search.finish(proposal.number)
                self._finished.append(self._recovered(proposal.policy))
            found.seconds.append(self._spent)
            found.volumes.append(volume(self._finished, self._ceiling))
        return found

    def _recovered(self, policy: Policy) -> Curve:
        """The end of a policy's curve."""
        drops = {split: self._trainer.score(policy, END, split)[0] for split in ("validation", "test")}
        seconds = self._trainer.seconds(policy)[END:]
        return Curve(policy.digest, self._trainer.log2_bops(policy), [drops["validation"]], [drops["test"]], seconds)

    def _stages(self, proposal: Proposal) -> Iterator[Stage]:
        policy, rungs = proposal.policy, self._search.spec.rungs

        def scores(look: int) -> list[Measurement]:
            drop, divergence = self._trainer.score(policy, look, "validation")
            return [_exact("accuracy_drop", drop), _exact("kl", divergence)]

        yield Stage("counted", measurements=[_exact("bops", 2 ** self._trainer.log2_bops(policy))])
        yield Stage("scored", measurements=scores(0), final=False)
        files = {"weights": Artifact.of(self._trainer.weights(policy))}
        if proposal.recovered is not None:
            yield Stage("recovered", 1, scores(END), files, epochs=policy.recovery.epochs)
            return
        looks = [LOOKS.recovery.index(fraction) for fraction in rungs.recovery if fraction] if rungs else [END]
        seconds = [0.0, *(self._trainer.seconds(policy)[look] for look in looks)]
        for rung, look in enumerate(looks, start=1):
            self._spent += seconds[rung] - seconds[rung - 1]
            yield Stage(
                "recovered",
                rung,
                scores(look),
                files,
                final=look == END,
                epochs=LOOKS.recovery[look] * policy.recovery.epochs,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 trials of one epoch, full recovery and reuse only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--cache", type=Path, default=Path("rungs-cache"), help="folder of weights trained before")
    parser.add_argument("--workload", default="digits-gru")
    parser.add_argument("--trials", type=int, default=50, help="fully recovered; with rungs twice as many come by")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of recovery")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.epochs, options.seeds, options.arms = 5, 1, 1, "full recovery;reuse"
    torch.set_num_threads(1)
    folder = options.cache / options.workload
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):
        for arm in options.arms.split(";"):
            trials = options.trials * (MORE if "rungs" in arm else 1)
            race = searched(options.workload, arm, seed, trials, options.epochs, folder)
            rows.append({"arm": arm, "seed": seed, "seconds": race.seconds, "volumes": race.volumes})
            Console(stderr=True).print(f"{arm}, seed {seed}: {len(race.seconds)} trials", highlight=False)
            if options.json:
                options.json.write_text(json.dumps({"workload": options.workload, "runs": rows}, indent=1))
    show(rows, f"{options.workload}, {options.trials} trials fully recovered, {options.seeds} seeds")


def searched(workload: str, arm: str, seed: int, trials: int, epochs: int, folder: Path) -> Race:
    document = {
        "study": "rungs", "workload": workload, "target": "cpu-openvino", "objectives": ["accuracy_drop", "bops"],
        "constraints": [f"accuracy_drop <= {FLOOR}"], "space": {**SPACE, "recovery_epochs": [epochs]}, "budget": {"trials": trials}, "seed": seed,
        "workers": 0, **ARMS[arm],
    }  # fmt: skip
    prepared = prepare(StudySpec.from_document(document, "benchmark", Path()))
    torch.set_num_threads(1)  # `prepare` takes all
    with tempfile.TemporaryDirectory(prefix="slimfront-rungs-") as scratch, Store(f"sqlite:///{scratch}/x.db") as store:
        search = Search(prepared, store, Path(scratch))
        return Runner(search, Trainer(prepared, folder), whole_log2_bops(prepared)).run()


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Of each arm the median over seeds and, in brackets, the worst, as shares of full recovery's."""
    full = {row["seed"]: row for row in rows if row["arm"] == "full recovery"}
    table = Table("", "training", "hypervolume in a third of the training", "in half", "in the end", title=title)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        shares: dict[str, list[float]] = {"training": [], "third": [], "half": [], "end": []}
        for row in (row for row in rows if row["arm"] == arm):
            whole, race = full[row["seed"]], Race(row["seconds"], row["volumes"])
            spent, reached = whole["seconds"][-1], whole["volumes"][-1]
            shares["training"].append(race.seconds[-1] / spent)
            shares["third"].append(at(race, spent / 3) / reached)
            shares["half"].append(at(race, spent / 2) / reached)
            shares["end"].append(race.volumes[-1] / reached)
        worst = {key: max(v) if key == "training" else min(v) for key, v in shares.items()}
        table.add_row(arm, *(f"{statistics.median(v):.3f} ({worst[key]:.3f})" for key, v in shares.items()))
    Console(width=120).print(table)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _exact(name: str, value: float) -> Measurement:
    return Measurement.exact(name, value, "simulated")


if __name__ == "__main__":
    main()
