"""Which choice of a knob to measure alone: how well each answer predicts the damage of whole policies, task by task.

Of every knob one choice is measured before a search, and its others are guessed from it. Measured is the one that theory
guesses to be worst below a limit. Here every choice of every knob is measured; for each limit the damage model is given
what it would have been given, and predicts, before any trial, the log damage of policies with a few knobs changed, of
those that are not broken. A limit chosen on two tasks by the median error is judged on the third, in rotation. No trials
are run and no hypervolume is looked at. `--quick` takes under two minutes.
"""

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sample_efficiency import TASKS, prepared_task
from slimfront.search.sampler.dimensions import encode
from slimfront.search.sampler.study_terms import space_dimensions
from slimfront.search.sampler.surrogate.damage_model import BROKEN, StructuredMean
from slimfront.search.sampler.surrogate.surrogate import log_damage
from slimfront.search.sensitivity import Probe, Simulation, known_damage, measured, probes
from slimfront.search.trials.prepared_study import PreparedStudy
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.store.records import SensitivityRecord

LIMITS = (0.01, 0.03, 0.1, 0.3, 1.0, float("inf"))
"""Nats, in the guess of a choice's damage; 1 is what the damage model calls broken."""

CHANGED = (1, 2, 4, 8, 16)
"""Knobs changed in the policies that are predicted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 policies a task instead of 60")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    errors = {task: errors_by_limit(prepared_task(task), 30 if options.quick else 60) for task in TASKS}
    show(errors)
    if options.json:
        options.json.write_text(json.dumps({"errors": errors, "rotation": rotation(errors)}, indent=1))


def errors_by_limit(prepared: PreparedStudy, count: int) -> dict[float, float]:
    """Limit -> median absolute error of the log damage predicted."""
    wanted = {limit: probes(prepared.space, limit) for limit in LIMITS}
    every = {probe.policy.digest: probe for chosen in wanted.values() for probe in chosen}
    records = {record.digest: record for record in measured(prepared, list(every.values()))}
    simulation = Simulation(prepared)
    policies = changed_policies(prepared, count)
    damages = np.array([log_damage(simulation.divergence(policy).value) for policy in policies])
    intact = damages < BROKEN
    return {
        limit: float(np.median(np.abs(predicted(prepared, chosen, records, policies) - damages)[intact]))
        for limit, chosen in wanted.items()
    }


def changed_policies(prepared: PreparedStudy, count: int) -> list[Policy]:
    """The uncompressed model with some knobs drawn anew."""
    draw, space = random.Random(0), prepared.space
    whole = space.parameters(space.uniform({}))
    drawn = []
    for index in range(count):
        knobs = draw.sample(space.knobs, CHANGED[index % len(CHANGED)])
        drawn.append(space.policy({**whole, **{knob.name: draw.choice(knob.choices) for knob in knobs}}))
    return drawn


def predicted(
    prepared: PreparedStudy,
    chosen: Sequence[Probe],
    records: Mapping[str, SensitivityRecord],
    policies: Sequence[Policy],
) -> np.ndarray:
    """Log damage [policies] by the damage model's priors, given the records of the chosen probes."""
    found = [records[probe.policy.digest] for probe in chosen if probe.policy.digest in records]
    dimensions = space_dimensions(prepared.space, known_damage(prepared.space, found))
    codes = [encode(dimensions, prepared.space.parameters(policy)) for policy in policies]
    return StructuredMean(dimensions).predict(np.array(codes))


def rotation(errors: Mapping[str, Mapping[float, float]]) -> dict[str, dict[str, float]]:
    """For each task the limit that the other tasks choose, its error here, and the least error of any limit here."""
    chosen = {
        task: min(LIMITS, key=lambda limit: statistics.mean(errors[other][limit] for other in errors if other != task))
        for task in errors
    }
    return {
        task: {"chosen": limit, "error": errors[task][limit], "least": min(errors[task].values())}
        for task, limit in chosen.items()
    }


def show(errors: Mapping[str, Mapping[float, float]]) -> None:
    table = Table(
        "task", *(f"below {limit:g}" for limit in LIMITS), "chosen by the others", title="median error, log nats"
    )
    for task, row in rotation(errors).items():
        table.add_row(task, *(f"{errors[task][limit]:.3f}" for limit in LIMITS), f"{row['chosen']:g}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
