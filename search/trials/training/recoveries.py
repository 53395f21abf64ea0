"""Recoveries of one worker: here, or by several processes that train together where the worker has several GPUs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ....compression.compress import pruned_in_recovery
from ....compression.packing.own_state import load_saved
from ....compression.rank_processes import RankProcesses, own_device
from ....compression.ranks import Ranks
from ....compression.recovery.checkpoint import Checkpoints
from ....compression.recovery.recover import recover_by_rungs, recovering
from ....core.batch import HOST, device_of_model
from ....core.errors import WorkloadError
from ....spaces.policies.policy import Policy
from ....workloads.load import settle_in
from ....workloads.placement import model_on, on_device, placed
from ....workloads.workload import Workload
from ..given_workload import loaded_workload, take_registrations
from ..shared_pickle import SharedPickle
from ..worker_setup import WorkerSetup

Trained = Iterator[tuple[nn.Module | None, float]]
"""Models with the epochs that they were trained for; None for the model whenever it was saved."""


@dataclass(frozen=True)
class Recoveries:
    """What a worker trains with.

    Attributes:
        workload: where the worker computes.
    """

    setup: WorkerSetup
    workload: Workload

    @classmethod
    def of(cls, setup: WorkerSetup, given: Workload | None = None) -> Recoveries:
        """With the workload that a worker is set up for, loaded unless it is given, where it is to compute.

        Raises:
            WorkloadError: it cannot be loaded, or the machine has fewer GPUs than the worker is to use.
        """
        kept = setup.workload, setup.workload_options, setup.base_folder, setup.pickled_workload
        workload = placed(given or loaded_workload(*kept), setup.compute.device, setup.compute.data_workers)
        if setup.registrations is not None:
            take_registrations(setup.registrations)
        made = cls(setup, workload)
        if made.processes > torch.cuda.device_count() and device_of_model(workload.model).type == "cuda":
            raise WorkloadError(f"compute.gpus is {made.processes}, and a worker here has {torch.cuda.device_count()}")
        return made

    @property
    def processes(self) -> int:
        """How many train a model together: one a GPU where the worker has several."""
        gpus = int(self.setup.compute.gpus)
        return gpus if gpus > 1 and device_of_model(self.workload.model).type == "cuda" else 1

    def run(
        self,
        original: Policy,
        model: nn.Module,
        marks: Collection[float],
        recovered: Path | None,
        checkpoints: Checkpoints | None,
    ) -> Trained:
        """The model and the epochs so far at each rung, without rungs only at the end of recovery; None for the model whenever it was
        saved.

        Args:
            model: the workload's, pruned as `original` says.
            marks: epochs after which a recovery is judged before its end.
            recovered: weights of the same structure after the same recovery, which is then skipped.
        """
        if recovered is not None:
            load_saved(model, load_file(recovered))
            yield model, original.recovery.epochs
        elif self.processes > 1 and original.recovery.epochs:
            yield from self._together(original, model, marks, checkpoints)
        else:
            yield from self._here(original, model, marks, checkpoints)

    def _here(
        self, original: Policy, model: nn.Module, marks: Collection[float], checkpoints: Checkpoints | None
    ) -> Trained:
        recovery, setup = original.recovery, self.setup
        if original.pruning.steps > 1 and recovery.steps[0] == "prune":
            model = self._pruned_in_recovery(self.workload.model, original, checkpoints)
        if setup.rungs is None:
            prune = partial(self._pruned_in_recovery, original=original, checkpoints=checkpoints)
            settings = setup.seed, setup.batch_size, prune, setup.groups, checkpoints
            yield from ((trained, recovery.epochs) for trained in recovering(model, self.workload, original, *settings))
            return
        settings = setup.seed, setup.batch_size, marks, checkpoints
        yield from recover_by_rungs(model, self.workload, original, *settings)

    def _together(
        self, original: Policy, model: nn.Module, marks: Collection[float], checkpoints: Checkpoints | None
    ) -> Trained:
        """As `_here`, by processes that begin with this one's models."""
        device = device_of_model(model)
        models = model_on(self.workload.model, HOST), model_on(model, HOST)
        given = SharedPickle.of((*models, original, marks, checkpoints))
        for trained, epochs in RankProcesses(partial(_as_rank, self.setup, given), self.processes, device.type).run():
            yield trained and model_on(trained, device), epochs

    def _pruned_in_recovery(self, trained: nn.Module, original: Policy, checkpoints: Checkpoints | None) -> nn.Module:
        setup = self.setup
        settings = setup.groups, setup.seed, setup.batch_size, checkpoints
        return pruned_in_recovery(trained, self.workload, original, *settings)


def _as_rank(setup: WorkerSetup, given: SharedPickle) -> Trained:
    """What one of the processes of `Recoveries._together` does."""
    settle_in(setup.base_folder)
    alone = replace(setup, compute=setup.compute.model_copy(update={"gpus": 1}))
    workload = Recoveries.of(alone).workload
    torch.set_num_threads(max(1, setup.threads // Ranks.here().count))
    teacher, student, original, marks, checkpoints = given.load(copied=True)
    device = own_device(device_of_model(workload.model))
    workload = replace(on_device(workload, device), model=model_on(teacher, device))
    yield from Recoveries(alone, workload)._here(original, model_on(student, device), marks, checkpoints)
