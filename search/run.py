"""A search from its spec to its confirmed front, with progress on the console."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..hardware_profiles.fingerprint import saturates
from ..studies.spec import StudySpec
from ..studies.store import Store
from .confirm import confirm_front
from .dashboard import Publisher
from .driver import Search
from .local import run_local
from .lock import sole_driver
from .problem import prepare
from .screen import SearchProgress


def run_search(spec: StudySpec, storage: str, artifacts: Path, console: Console) -> None:
    """Run or continue the study, confirm its front, and publish it to the dashboard.

    Raises:
        UserError: bad input; nothing was written where it was found before the study began.
        KeyboardInterrupt: Ctrl-C; everything finished is stored.
    """
    with SearchProgress(spec, console) as progress:
        _run(spec, storage, artifacts, progress)


def _run(spec: StudySpec, storage: str, artifacts: Path, progress: SearchProgress) -> None:
    problem = prepare(spec)
    for group, reason in problem.unprunable.items():
        progress.say(f"channels of {group} stay: {reason}", "dim")
    progress.say(
        f"{len(problem.layers)} layers, {len(problem.groups)} channel groups, {len(problem.space.knobs)} knobs; "
        f"target {problem.target.name}"
    )
    if problem.target.predict and problem.target.latency_table is not None:
        table = problem.target.latency_table
        progress.say(
            f"latency is predicted by the table in the target's card (median error {table.error:.1%}), not measured",
            "yellow",
        )
    with Store(storage) as store, sole_driver(store, spec.study):
        search = Search(problem, store, artifacts, progress.tell)
        publisher = Publisher(search)
        progress.follow(search, publisher)
        _warn_of_a_noisy_machine(search, progress)
        _warn_of_saturation(search, progress)
        try:
            if spec.workers:
                from .distributed import run_distributed  # only here: importing ray takes a second

                run_distributed(search, spec.workers)
            else:
                run_local(search)
            confirm_front(search, progress.confirming)
        finally:
            publisher.publish(force=True)


def _warn_of_a_noisy_machine(search: Search, progress: SearchProgress) -> None:
    """Say so where the uncompressed model, timed against itself, is told apart from itself."""
    against_itself = search.store.get_study(search.spec.study).baseline["speedup"]
    if not against_itself.low <= 1 <= against_itself.high:
        progress.say(
            f"this machine was busy: the uncompressed model measured {against_itself.value:.3f}x as fast as itself; "
            "latencies of this study carry that error",
            "yellow",
        )


def _warn_of_saturation(search: Search, progress: SearchProgress) -> None:
    """Say so where the machine computes 8-bit layers otherwise than most others would."""
    choices, runtime = search.problem.space.choices, search.problem.target.runtime
    offered = 8 in choices.weight_bits and 8 in choices.activation_bits
    if offered and saturates(search.store.get_study(search.spec.study).machine, runtime):
        progress.say(
            f"this processor has no VNNI: sums of 8-bit weights times 8-bit activations overflow in {runtime}'s kernels; "
            "accuracies are those of such processors, see docs/targets.md",
            "yellow",
        )
