"""Whether an artifact takes its inputs at other sizes of the axes that a workload names as dynamic, and computes the same there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ...core.batch import Batch, largest_difference, moved, repeated, tensors_of
from ...core.errors import LoweringError, WorkloadError
from ...core.interrupts import raise_if_interrupted
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.runtimes.base import Session
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...workloads.calls import resized, sizes_of
from ...workloads.workload import Workload, describe
from .float_artifact import float_session, run

SAME = 1e-2
"""The largest difference, relative to the largest output, between an artifact in float32 and the model: a constant that was folded from
the example's size makes far more."""


def size_remarks(workload: Workload, target: Target) -> list[str]:
    """What is to be known of a workload's dynamic axes on a target: nothing where its artifacts take other sizes, which is tried.

    Raises:
        WorkloadError: the model, or an artifact of it, does not run at other sizes, or computes something else there.
    """
    axes = workload.dynamic_axes
    if not axes:
        return []
    sizes = sizes_of(axes, workload.example_input)
    if not RUNTIMES[target.runtime].dynamic_axes:
        fixed = ", ".join(f"{name} is {size}" for name, size in sizes.items())
        return [f"runtime {target.runtime} has no dynamic axes: in its artifacts {fixed}, as in the example"]
    if target.remote or target.predict:
        return [f"dynamic axes {', '.join(sizes)} are not tried here: target {target.name} is on another machine"]
    _try(workload, target)
    return []


@torch.no_grad()
def _try(workload: Workload, target: Target) -> None:
    asked = [(sizes, *_answered(workload, sizes, target.batch)) for sizes in _other_sizes(workload)]
    try:
        with float_session(workload, target) as session:
            for sizes, inputs, expected in asked:
                _require_same(expected, inputs, session, f"{target.runtime}'s artifact at {_said(sizes)}")
    except LoweringError as error:
        raise WorkloadError(f"dynamic_axes: {target.runtime} takes the model at no other size: {error}") from error


def _answered(workload: Workload, sizes: Mapping[str, int], batch: int) -> tuple[Batch, Batch]:
    """The example at other sizes, and what the model makes of it."""
    inputs = repeated(resized(workload.example_input, workload.dynamic_axes, sizes), batch)
    try:
        return inputs, workload.model(inputs)
    except BaseException as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(f"dynamic_axes: the model does not run at {_said(sizes)}: {describe(error)}") from error


def _said(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _other_sizes(workload: Workload) -> Iterator[dict[str, int]]:
    """All axes shorter, and each alone one longer: the example's sizes may be the greatest that another axis allows."""
    sizes = sizes_of(workload.dynamic_axes, workload.example_input)
    yield {name: max(1, size // 2) for name, size in sizes.items()}
    for name, size in sizes.items():
        yield {**sizes, name: size - 1 if size > 2 else size + 1}


def _require_same(expected: Batch, inputs: Batch, session: Session, which: str) -> None:
    try:
        made = run(session, inputs)
    except LoweringError as error:
        raise WorkloadError(f"dynamic_axes: {which} does not run: {error}") from error
    found = {name: torch.from_numpy(values.copy()) for name, values in made.items()}
    known = dict(zip(found, tensors_of(moved(expected, "cpu")), strict=True))
    if (difference := largest_difference(known, found)) > SAME:
        raise WorkloadError(
            f"dynamic_axes: {which} computes a different function from the model (off by {difference:.2g} of the largest output): "
            "forward makes a constant of the example's size; compute it from the tensor's own shape"
        )
