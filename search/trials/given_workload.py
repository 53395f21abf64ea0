"""What only the program that searches has, its workload and what it registered: how that gets to workers in other processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...compression.pruning.criteria import CRITERIA
from ...compression.recovery.distil import DISTILLERS
from ...core.errors import WorkloadError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...core.registry import Registry
from ...evaluators.registry import added_evaluators, adopt
from ...spaces.knobs.registry import KNOB_KINDS
from ...workloads.load import adopt_workload, load_workload
from ...workloads.workload import Workload
from .shared_pickle import SharedPickle

REGISTRIES: tuple[Registry[Any], ...] = (CRITERIA, DISTILLERS, KNOB_KINDS)


def pickled_workload(workload: Workload) -> SharedPickle:
    """The workload, pickled.

    Raises:
        WorkloadError: something in it cannot be pickled.
    """
    return _pickled(workload, "the workload")


def pickled_registrations() -> SharedPickle:
    """The criteria, distillers, kinds of knobs and evaluators that this program registered itself, pickled.

    Raises:
        UserError: one of them cannot be pickled.
    """
    registered = [registry.registered for registry in REGISTRIES]
    return _pickled((registered, added_evaluators()), "what was registered")


def take_registrations(pickled: SharedPickle) -> None:
    """Register here what `pickled_registrations` found in another process, after the workload was loaded: its file's classes are
    there then."""
    registered, evaluators = pickled.load()
    for registry, implementations in zip(REGISTRIES, registered, strict=True):
        for name, implementation in implementations.items():
            registry.register(name, implementation, replace=True)
    adopt(evaluators)


def loaded_workload(
    reference: str, options: Mapping[str, Any], base: Path, pickled: SharedPickle | None = None, copied: bool = False
) -> Workload:
    """The workload that `pickled` holds, or else the one that `load_workload` finds; the same in every process.

    Args:
        copied: whether an object's tensors and arrays are to be copies of those that were pickled.

    Raises:
        WorkloadError: it cannot be unpickled or loaded, or breaks its contract.
    """
    if pickled is None:
        return load_workload(reference, options, base)
    try:
        workload = pickled.load(copied)
    except BaseException as error:  # the user's classes may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(
            f"the workload cannot be unpickled in another process: {describe_exception(error)}"
        ) from error
    return adopt_workload(workload, reference, base)


def _pickled(value: object, what: str) -> SharedPickle:
    try:
        return SharedPickle.of(value)
    except BaseException as error:  # the user's objects may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(
            f"{what} cannot be pickled for workers: {describe_exception(error)}; "
            "have a function make the workload and name that: 'path/to/file.py:function'"
        ) from error
