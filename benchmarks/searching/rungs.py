"""How much training successive halving saves: the hypervolume of fully recovered policies over the seconds of training.

Random policies (channels, width, weight bits) of a digits workload are recovered for eight epochs each, and scored before
that, after a half, one and two epochs and at the end. Without rungs every one is recovered to the end. With rungs all come by
in some order, and those that do not look promising stop; at the end those that were stopped and are among the best after all
are recovered anew, from the start. A front is selected on validation and judged on the test split, from a drop of 0.10 and the
uncompressed model's BOPs, by fully recovered policies alone. Every curve is trained once and kept on disk; the orders are drawn
anew for each seed. All is trained twice more in other orders of the samples, to say what difference of hypervolume is no
difference. Bits are simulated, activations stay whole. `--quick` takes under two minutes.
"""

import argparse
import copy
import json
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import moocore
import numpy as np
import torch
from cheap_evaluation import stacked
from rich.console import Console
from rich.table import Table
from slimfront.compression.pruning.prune import pruned_copy, reestimate_batch_norm
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.compression.recovery.recover import recover_by_rungs
from slimfront.search.fidelity.halving import SuccessiveHalving
from slimfront.search.sampler.dimensions import encode
from slimfront.search.sampler.study_terms import cost_of, space_dimensions
from slimfront.search.sampler.surrogate.analytic_cost import COUNTED, AnalyticCost
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.spaces.policies.policy import Policy
from slimfront.spaces.space import Space
from slimfront.studies.study_file.parts import RungsSpec
from slimfront.studies.study_file.spec import StudySpec
from torch import nn
from torch.nn.utils import parametrize

FLOOR = 0.10
EPOCHS = 8
LOOKS = RungsSpec(recovery=(0.0, 1 / 16, 1 / 8, 1 / 4, 1.0))
SCHEDULES = {
    text: RungsSpec(recovery=recovery)
    for text, recovery in {
        "0, 1/4, 1": (0.0, 1 / 4, 1.0),
        "1/16, 1/4, 1": (1 / 16, 1 / 4, 1.0),
        "1/8, 1": (1 / 8, 1.0),
        "1/8, 1/4, 1": (1 / 8, 1 / 4, 1.0),
        "0, 1/16, 1/4, 1": (0.0, 1 / 16, 1 / 4, 1.0),
    }.items()
}
SPACE = {
    "granularity": "layer",
    "weight_bits": [3, 4, 6, 8],
    "channel_sparsity": [0, 0.25, 0.5],
    "width": [1.0, 0.75, 0.5, 0.25],
    "recovery_epochs": [EPOCHS],
}


@dataclass(frozen=True)
class Curve:
    """A policy over its recovery: at each of `LOOKS` the drops and the seconds of training up to it; BOPs as their log2."""

    digest: str
    log2_bops: float
    validation_drops: list[float]
    test_drops: list[float]
    seconds: list[float]


@dataclass(frozen=True)
class Race:
    """One order of policies, with or without rungs: hypervolume after so many seconds of training."""

    seconds: list[float]
    volumes: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 policies instead of 50, and 9 in place of 100")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--cache", type=Path, default=Path("rungs-cache"), help="folder of curves trained before")
    parser.add_argument("--workload", default="digits-gru")
    parser.add_argument(
        "--policies", type=int, default=50, help="fully recovered; with rungs up to twice as many come by"
    )
    parser.add_argument("--seeds", type=int, default=9, help="orders of the policies")
    options = parser.parse_args()
    prepared = prepared_task(options.workload)
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    count, *more = (6, 9) if options.quick else (round(options.policies * times) for times in (1, 1.2, 1.4, 1.6, 2))
    cost = cost_of(prepared)
    curves, *others = (
        list(
            trained(
                prepared,
                cost,
                count if seed else max(count, *more),
                seed,
                options.cache / f"{options.workload}.{seed}.jsonl",
            )
        )
        for seed in range(2 if options.quick else 3)
    )
    ceiling = whole_log2_bops(prepared)
    again = [volume(each, ceiling) / volume(curves[:count], ceiling) for each in others]
    figures = {
        text: {drawn: compare(curves, ceiling, options.seeds, rungs, count, drawn) for drawn in (count, *more)}
        for text, rungs in SCHEDULES.items()
    }
    if options.json:
        document = {"workload": options.workload, "policies": count, "trained_again": again, "schedules": figures}
        options.json.write_text(json.dumps(document, indent=1))
    for text, of_drawn in figures.items():
        show(
            of_drawn,
            f"{options.workload}, {options.seeds} orders, rungs {text}, against {count} policies fully recovered",
        )
    ratios = ", ".join(f"{ratio:.3f}" for ratio in again)
    print(f"hypervolume of all recovered in another order of the samples / of all: {ratios}")


def prepared_task(workload: str) -> PreparedStudy:
    document = {
        "study": "rungs", "workload": workload, "target": "cpu-openvino", "objectives": ["accuracy_drop", "bops"],
        "space": SPACE, "budget": {"trials": 1},
    }  # fmt: skip
    return prepare(StudySpec.from_document(document, "benchmark", Path()))


def trained(prepared: PreparedStudy, cost: AnalyticCost, count: int, seed: int, file: Path) -> Iterator[Curve]:
    """The curves of `count` random policies, those in `file` read and the others trained and added to it."""
    lines = file.read_text().splitlines() if file.exists() else []
    known = {row["digest"]: Curve(**row) for row in map(json.loads, lines)}
    draw, space = random.Random(0), prepared.space
    for _ in range(count):
        policy = space.policy({knob.name: draw.choice(knob.choices) for knob in space.knobs})
        if policy.digest not in known:
            known[policy.digest] = curve_of(prepared, cost, policy, seed)
            with file.open("a") as opened:
                opened.write(json.dumps(asdict(known[policy.digest])) + "\n")
        yield known[policy.digest]


def curve_of(prepared: PreparedStudy, cost: AnalyticCost, policy: Policy, seed: int) -> Curve:
    workload = prepared.context.workload
    data = {split: stacked(getattr(workload, split)) for split in ("validation", "test")}
    whole = {split: accuracy(workload.model.eval(), Policy(), *pair) for split, pair in data.items()}
    model = pruned_copy(workload.model, workload.example_input, policy, prepared.groups)
    reestimate_batch_norm(model, workload.calibration)
    drops: dict[str, list[float]] = {split: [] for split in data}
    seconds = [0.0]

    def look(model: nn.Module) -> None:
        for split, pair in data.items():
            drops[split].append(whole[split] - accuracy(model, policy, *pair))

    look(model)
    started = time.process_time()
    for trained_model, _ in recover_by_rungs(model, workload, policy, seed, 64, LOOKS.marks(EPOCHS)):
        seconds.append(seconds[-1] + time.process_time() - started)
        look(trained_model)
        started = time.process_time()
    return Curve(policy.digest, log2_bops(cost, prepared.space, policy), drops["validation"], drops["test"], seconds)


@torch.no_grad()
def accuracy(model: nn.Module, policy: Policy, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    with rounded(model, policy) as copied:
        return float((copied(inputs).argmax(1) == targets).double().mean())


@contextmanager
def rounded(model: nn.Module, policy: Policy) -> Iterator[nn.Module]:
    """A copy of `model` whose weights have the bits of `policy`."""
    copied = copy.deepcopy(model)
    with fake_quantized(copied, policy, {}), parametrize.cached():  # rounded once, not at every step of a recurrence
        yield copied


def log2_bops(cost: AnalyticCost, space: Space, policy: Policy) -> float:
    codes = encode(space_dimensions(space), space.parameters(policy))
    return float(np.log2(cost(codes[None])[0, COUNTED.index("bops")]))


def whole_log2_bops(prepared: PreparedStudy) -> float:
    """Of the uncompressed model, which the space does not hold."""
    return float(np.log2(sum(layer.macs for layer in prepared.layers) * 32 * 32))


def compare(
    curves: Sequence[Curve], ceiling: float, seeds: int, schedule: RungsSpec, count: int, drawn: int
) -> list[dict[str, float]]:
    """For each order: what rungs spend and reach with `drawn` policies, against full recovery of its first `count`."""
    rows = []
    for seed in range(seeds):
        order = list(curves)
        random.Random(seed).shuffle(order)
        full, rungs = race(order[:count], ceiling, None), race(order[:drawn], ceiling, schedule)
        rows.append({
            "seed": seed,
            "training": rungs.seconds[-1] / full.seconds[-1],
            "hypervolume": rungs.volumes[-1] / full.volumes[-1],
            "full_recovery_in_that_time": at(full, rungs.seconds[-1]) / full.volumes[-1],
            "hypervolume_at_a_third": at(rungs, full.seconds[-1] / 3) / full.volumes[-1],
            "without_second_looks": rungs.volumes[drawn - 1] / full.volumes[-1],
        })  # fmt: skip
    return rows


def race(order: Sequence[Curve], ceiling: float, rungs: RungsSpec | None) -> Race:
    """All policies in an order; those that were stopped and turn out to be among the best are then trained anew."""
    field = Field(rungs)
    spent, found, waiting = 0.0, Race([], []), deque(order)
    while (curve := waiting.popleft() if waiting else field.promoted()) is not None:
        spent += field.recover(curve)
        found.seconds.append(spent)
        found.volumes.append(volume(field.finished, ceiling))
    return found


class Field:
    """Policies that were recovered, to their end or to where they were stopped."""

    def __init__(self, rungs: RungsSpec | None) -> None:
        self._halving = SuccessiveHalving([1, 1], rungs.reduction) if rungs else None
        self._looks = [LOOKS.recovery.index(fraction) for fraction in rungs.recovery[:-1]] if rungs else []
        self._came: dict[int, list[Curve]] = defaultdict(list)
        self._stopped: dict[str, int] = {}
        self.finished: list[Curve] = []

    def recover(self, curve: Curve) -> float:
        """Seconds of training, from the start; a policy stopped before continues after the rung that stopped it."""
        passed = self._stopped.pop(curve.digest, -1)
        for look in self._looks:
            if self._halving is not None and look > passed:
                self._came[look].append(curve)
                values = curve.validation_drops[look], curve.log2_bops
                if not self._halving.arrive(look, values).is_promising:
                    self._stopped[curve.digest] = look
                    return curve.seconds[look]
        self.finished.append(curve)
        return curve.seconds[-1]

    def promoted(self) -> Curve | None:
        """The best that was stopped where it would go on now, of the highest rung."""
        for look in sorted(self._came, reverse=True):
            assert self._halving is not None  # nothing comes without it
            for curve in (self._came[look][index] for index in self._halving.best(look)):
                if self._stopped.get(curve.digest) == look:
                    return curve
        return None


def volume(finished: Sequence[Curve], ceiling: float) -> float:
    """On the test split, of the front selected on validation."""
    if not finished:
        return 0.0
    chosen = moocore.is_nondominated(np.array([(c.validation_drops[-1], c.log2_bops) for c in finished]))
    tested = np.array([(c.test_drops[-1], c.log2_bops) for c in finished])[chosen]
    return float(moocore.hypervolume(tested, ref=np.array([FLOOR, ceiling])))


def at(race: Race, seconds: float) -> float:
    """The hypervolume after so many seconds of training; more training may have less of it, as it is judged on the test split."""
    return next((v for s, v in zip(reversed(race.seconds), reversed(race.volumes), strict=True) if s <= seconds), 0.0)


def show(of_drawn: dict[int, list[dict[str, float]]], title: str) -> None:
    """Medians and, in brackets, the worst order, of each number of policies that rungs draw."""
    table = Table("", *(f"{drawn} with rungs" for drawn in of_drawn), title=title)
    for key, text, worst in (
        ("training", "training / full recovery", max),
        ("hypervolume", "hypervolume / full recovery", min),
        ("full_recovery_in_that_time", "full recovery of as many as that time allows / of all", min),
        ("hypervolume_at_a_third", "hypervolume after a third of the training / full recovery", min),
        ("without_second_looks", "hypervolume before anyone is recovered anew / full recovery", min),
    ):
        values = [[row[key] for row in orders] for orders in of_drawn.values()]
        table.add_row(text, *(f"{statistics.median(v):.3f} ({worst(v):.3f})" for v in values))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
