"""The uncompressed model as a target's runtime takes it, held against the model itself before anything else is asked of either."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ...compression.batches import arrays_of, outputs_of
from ...core.batch import Batch, repeated
from ...core.errors import EvaluationError, LoweringError, TargetError, WorkloadError
from ...core.interrupts import raise_if_interrupted
from ...core.machine.memory import tidy
from ...core.threads import torch_threads
from ...evaluators.agreement import Agreement
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.runtimes.base import Session, get_runtime
from ...hardware_profiles.runtimes.lowered import lowered
from ...spaces.policies.candidate import Candidate
from ...spaces.policies.float_precision import FLOAT32
from ...spaces.policies.policy import Policy
from ...workloads.workload import Workload, describe
from .precision_probe import why_not_asked


@torch.no_grad()
def require_artifact(workload: Workload, target: Target) -> None:
    """Refuse a model of which the target's runtime takes no artifact, or computes something else; nothing is asked of a target that
    is not here, or that takes long to answer.

    Raises:
        WorkloadError: in one line, what the runtime does not take.
    """
    if why_not_asked(target):
        return
    inputs = repeated(workload.example_input, target.batch)
    agreement = Agreement(Candidate(Policy(), workload.model.eval()), FLOAT32)
    try:
        with float_session(workload, target) as session:
            agreement.watch(inputs, outputs_of(run(session, inputs)))
        agreement.require()
    except TargetError:  # the runtime is not installed here, as what bits gain will say
        return
    except (LoweringError, EvaluationError) as error:
        name = f"workload {workload.name}: " if workload.name else ""
        raise WorkloadError(f"{name}target {target.name} does not take the model: {error}") from error


@contextmanager
def float_session(workload: Workload, target: Target) -> Iterator[Session]:
    """A session of the uncompressed model in float32.

    Raises:
        TargetError: the runtime is not installed here.
        LoweringError: it does not take the model.
    """
    candidate, runtime = Candidate(Policy(), workload.model.eval()), get_runtime(target.runtime)
    with tempfile.TemporaryDirectory(prefix="slimfront-float-") as folder, torch_threads(1):
        path = Path(folder) / f"model{runtime.suffix}"
        file = lowered(runtime, candidate, workload.example_input, target, path).path
        tidy()  # what the export has freed, before the runtime compiles
        yield runtime.load(file, target)


def run(session: Session, inputs: Batch) -> dict[str, np.ndarray]:
    """What a session makes of inputs.

    Raises:
        LoweringError: it does not run.
    """
    try:
        return session.run(arrays_of(inputs))
    except Exception as error:  # a runtime raises anything over a shape that was folded into its graph
        raise_if_interrupted(error)
        raise LoweringError(describe(error)) from error
