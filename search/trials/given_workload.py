"""A workload that is an object of the program that searches: how it gets to workers in other processes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from ...core.errors import WorkloadError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...workloads.load import adopt_workload, load_workload
from ...workloads.workload import Workload


def pickled_workload(workload: Workload) -> bytes:
    """The workload as bytes; classes and functions of the main script or a notebook are in them by value.

    Raises:
        WorkloadError: something in it cannot be pickled.
    """
    try:
        return cloudpickle.dumps(workload)
    except BaseException as error:  # the user's objects may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(
            f"the workload cannot be pickled for its workers: {describe_exception(error)}; "
            "have a function return it and name that: 'path/to/file.py:function'"
        ) from error


def loaded_workload(reference: str, options: Mapping[str, Any], base: Path, pickled: bytes | None = None) -> Workload:
    """The workload that `pickled` holds, or else the one that `load_workload` finds; the same in every process.

    Raises:
        WorkloadError: it cannot be unpickled or loaded, or breaks its contract.
    """
    if pickled is None:
        return load_workload(reference, options, base)
    try:
        workload = pickle.loads(pickled)
    except BaseException as error:  # the user's classes may raise anything
        raise_if_interrupted(error)
        raise WorkloadError(
            f"the workload cannot be unpickled in another process: {describe_exception(error)}"
        ) from error
    return adopt_workload(workload, reference, base)
