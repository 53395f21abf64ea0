"""One training step of a recovery pipeline: a student learns from a teacher and from the labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...core.batch import Batch, device_of_model, mapped, rows
from ...core.errors import CompressionError
from ...core.machine.turns import gpu_shared
from ...core.texts import epochs_text
from ...spaces.policies.policy import Recovery
from ...workloads.workload import MapDataset, Workload
from ..batches import ShuffledBatches, labelled_batches, shuffled_batches, subset
from ..finite import not_finite
from ..gradients import shaken_copy
from ..ranks import Ranks, averaged_once
from .checkpoint import Checkpoint, Place, RandomNumbers, Stateful
from .computing import Computing, compiled, wants_compiling
from .distil import Views, get_distiller, imitation_loss
from .early_stopping import EarlyStopping
from .feature_taps import projections, tapped_modules, tapping
from .outputs import output_kinds
from .schedules import learning_rate_shares, optimizer_of, schedule_of
from .sparsify import AfterStep
from .stored_teacher import StoredTeacher, stored_teacher
from .synthetic import SAMPLES, synthetic_inputs
from .teachers import Teacher

HELD_OUT = 10
"""Early stopping holds out every tenth sample of the training data, because no other split may influence training."""

MAX_NORM = 1.0
"""Gradients are clipped to this norm with AdamW and Adafactor, and in pipelines with quantization-aware training."""

logger = logging.getLogger(__name__)

Masks = Sequence[tuple[Tensor, Tensor]]
"""Pairs of a weight and its mask, 1 where it is trained and 0 where it stays zero."""


def train(
    student: nn.Module,
    workload: Workload,
    recovery: Recovery,
    epochs: float,
    seed: int,
    batch_size: int,
    masks: Masks = (),
    after_step: AfterStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train `student` in place for `epochs` as `recovery` says; it ends in eval mode. The same seed gives the same weights.

    The loss is alpha x distillation + (1 - alpha) x the workload's own, or distillation alone without labels.
    """
    for _ in training(student, workload, recovery, epochs, seed, batch_size, masks, (), after_step, checkpoint):
        pass


def training(
    student: nn.Module,
    workload: Workload,
    recovery: Recovery,
    epochs: float,
    seed: int,
    batch_size: int,
    masks: Masks = (),
    looks: Collection[float] = (),
    after_step: AfterStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[float]:
    """`train` as a generator: yields the number of epochs done after each, at the end, and whenever that was saved. In between the student is in
    eval mode and must not be changed; random numbers drawn in between do not affect training.

    Args:
        looks: epochs, or parts of them, after which to save a checkpoint and to yield.
        after_step: changes the weights after each step of the optimizer.
        checkpoint: where training is saved as it goes on, and taken up where it was saved; the weights are those of a training that was
            not interrupted, bit for bit on a CPU.

    Raises:
        CompressionError: training diverged: a weight is NaN or infinite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        data, held_out = _data(workload, recovery, seed)
        parts = _Training(student, workload, recovery, batch_size, masks, after_step)
        for done in parts.run(data, held_out, epochs, seed, looks, checkpoint):
            _require_finite(student, recovery, done)
            state = torch.get_rng_state()
            student.eval()
            yield done
            torch.set_rng_state(state)
    student.eval()


def training_step(
    student: nn.Module, workload: Workload, recovery: Recovery, batch_size: int
) -> tuple[Callable[[Sequence[Tensor], float], None], Callable[[Sequence[Tensor]], float]]:
    """(a function that trains `student` on a batch at a learning rate, one that says the loss on a batch without training)."""
    parts = _Training(student, workload, recovery, batch_size, ())
    parameters = parts._parameters()
    optimizer = optimizer_of(parameters, recovery)

    def step(batch: Sequence[Tensor], rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts._update([batch], parameters, optimizer)

    @torch.no_grad()
    def loss(batch: Sequence[Tensor]) -> float:
        return float(parts._loss(*batch))

    return step, loss


def steps_of_an_epoch(workload: Workload, recovery: Recovery, batch_size: int) -> int:
    """How many steps of the optimizer a pass over the training data has."""
    samples = SAMPLES if recovery.data == "synthetic" else len(workload.train)
    samples -= samples // HELD_OUT if recovery.patience else 0
    return max(1, samples // batch_size // recovery.accumulate)


def _data(workload: Workload, recovery: Recovery, seed: int) -> tuple[MapDataset, MapDataset | None]:
    """What to train on, and what is held out of it for early stopping."""
    data = synthetic_inputs(workload, seed) if recovery.data == "synthetic" else workload.train
    if not recovery.patience:
        return data, None
    indices = range(len(data))
    kept_out = [index for index in indices if index % HELD_OUT == HELD_OUT - 1]
    rest = [index for index in indices if index % HELD_OUT != HELD_OUT - 1]
    return subset(data, rest), subset(data, kept_out)


def _require_finite(student: nn.Module, recovery: Recovery, epochs: float) -> None:
    if (name := not_finite(student)) is not None:
        raise CompressionError(
            f"training diverged: {name} is not finite after {epochs_text(epochs)} at learning_rate {recovery.learning_rate:g}; "
            "a lower recovery.learning_rate, or the optimizer adamw, which clips gradients, may not"
        )


class _Training:
    """The parts of one training step, put together once."""

    def __init__(
        self,
        student: nn.Module,
        workload: Workload,
        recovery: Recovery,
        batch_size: int,
        masks: Masks,
        after_step: AfterStep | None = None,
    ) -> None:
        self.after_step = after_step
        self.student, self.workload, self.recovery = student, workload, recovery
        self.batch_size, self.masks = batch_size, masks
        self.reads_labels = recovery.data == "train"
        self.imitates = recovery.alpha > 0 or not self.reads_labels
        self.device = device_of_model(student)
        self.kinds = output_kinds(workload)
        self.distiller = get_distiller(recovery.distiller, recovery.temperature, self.kinds)
        self.teacher = Teacher(workload, recovery.teachers, self.distiller.tap, self.kinds)
        self.stored: StoredTeacher | None = None
        example = workload.example_input
        self.modules = tapped_modules(student, example, self.distiller.tap)
        self.projections = self._projections(example).to(self.device)
        # In mutual learning (Zhang et al. 2018, arXiv:1706.00384) a peer starts elsewhere and both imitate one another.
        self.peer = shaken_copy(student) if recovery.mutual else None
        self.computing = Computing(student, example, recovery)
        self.forward: Callable[[Batch], Batch] = student
        self.ranks = Ranks.here()
        self.loss: Callable[..., Tensor] = self._loss

    @torch.no_grad()
    def _projections(self, example: Batch) -> nn.ModuleList:
        if self.distiller.tap is None:
            return nn.ModuleList()
        with tapping(self.student, self.modules, self.distiller.tap) as own:
            self.student.eval()(example)
        return projections(own, self.teacher(example)[1:], self.distiller.tap)

    def run(
        self,
        data: MapDataset,
        held_out: MapDataset | None,
        epochs: float,
        seed: int,
        looks: Collection[float],
        checkpoint: Checkpoint | None,
    ) -> Iterator[float]:
        """Yields how many epochs are done, after each and at the end, at `looks`, and whenever that was saved.

        What is saved is the state right after a step; what follows that step, such as the end of an epoch, is done again.
        """
        batches = self._batches(data, seed, checkpoint)
        steps, parameters = max(1, round(epochs * len(batches))), self._parameters()
        optimizer = optimizer_of(parameters, self.recovery)
        self._compile(steps)
        schedule = schedule_of(optimizer, self.recovery, steps)
        shares = learning_rate_shares(self.recovery, steps) if self.after_step else []
        stopping = EarlyStopping(self.recovery.patience)
        saved_at = {math.ceil(look * len(batches)): look for look in looks}
        stops = saved_at | {epoch * len(batches): epoch for epoch in range(1, int(epochs) + 1)} | {steps: epochs}
        place = Place(checkpoint, self._parts(optimizer, schedule, stopping), saved_at)
        stream = batches.after(place.steps)
        self.loss = self.ranks.averaging(self._loss, self._learners(), self.recovery.accumulate)
        while not place.is_over:
            if place.steps:
                is_epoch = place.steps % len(batches) == 0 or place.steps == steps
                if is_epoch and held_out and stopping.is_over(self.student, self._held_out_loss(held_out)):
                    break  # at once where it diverged: an epoch before it may have been good
                yield stops.get(place.steps, place.steps / len(batches))
            if place.steps == steps:
                break
            self.student.train()
            for step in stream:
                self.ranks.seed_step(seed, place.steps)
                with gpu_shared(str(self.device)):  # a step, which nobody else's timing there overlaps
                    self._update(step, parameters, optimizer)
                if self.after_step:
                    self.after_step(shares[place.steps])
                self.computing.step_rate(schedule)
                if place.step() or place.steps in stops:
                    break
        self.loss = self._loss  # another training of the same weights averages by itself
        if not place.is_over:
            stopping.restore(self.student)
            place.finish("student")

    def _batches(self, data: MapDataset, seed: int, checkpoint: Checkpoint | None) -> ShuffledBatches:
        """Batches with what the teacher said of them, or with their places where that is stored."""
        if self.imitates:
            self.stored = stored_teacher(
                self.teacher, self.workload, data, self.recovery, checkpoint and checkpoint.shared
            )
            data = data if self.stored is not None else self.teacher.annotated(data)
        settings = seed, self.recovery.accumulate, self.stored is not None
        return shuffled_batches(data, self.batch_size, self.device, *settings)

    def _compile(self, steps: int) -> None:
        """Compile the student's forward pass if a training of so many steps is to be, and nothing looks into it."""
        if not wants_compiling(self.recovery, self.device, steps):
            return
        if self.distiller.tap is not None:
            logger.warning("training is not compiled: the distiller %s looks into the model", self.recovery.distiller)
        elif not self.ranks.is_alone:
            logger.warning("training is not compiled: its batch-norms are those of several GPUs")
        else:
            self.forward = compiled(self.student, self.recovery)

    def _parts(
        self, optimizer: torch.optim.Optimizer, schedule: LRScheduler, stopping: EarlyStopping
    ) -> dict[str, Stateful]:
        """By name, all that training changes."""
        parts = {"optimizer": optimizer, "schedule": schedule, "stopping": stopping, "random": RandomNumbers(),
                 "scaler": self.computing.scaler}  # fmt: skip
        learners = {"student": self.student, "projections": self.projections, "peer": self.peer}
        others = {**learners, "after_step": self.after_step}
        return {**parts, **{name: part for name, part in others.items() if part is not None}}

    def _parameters(self) -> list[nn.Parameter]:
        """Those of the student, and of what is trained with it."""
        return [parameter for learner in self._learners() for parameter in learner.parameters()]

    def _learners(self) -> list[nn.Module]:
        return [self.student, self.projections, *([self.peer] if self.peer else [])]

    def _update(
        self, batches: Sequence[Sequence[Tensor]], parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """One step of gradient descent on the mean loss of batches; masked weights stay zero."""
        optimizer.zero_grad(set_to_none=True)
        for number, batch in enumerate(batches, 1):
            with averaged_once(self.loss, number == len(batches)):
                self.computing.scaler.scale(self.loss(*batch) / len(batches)).backward()
        if self.recovery.optimizer != "sgd" or self.recovery.steps.count("quantize"):
            # Without batch-norm, or once it is folded, a large step is not undone by the next one.
            self.computing.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        self.computing.step(optimizer)
        self._mask()

    def _loss(self, inputs: Batch, targets: Any, *said: Tensor) -> Tensor:
        inputs, computing = self.computing.laid_out(inputs), self.computing
        with computing.autocast(), self.ranks.whole_batches(self._learners()):
            guidance = self._guidance(inputs, said)
            with tapping(self.student, self.modules, self.distiller.tap) as views:
                outputs = self.forward(inputs)
            peer = self.peer(inputs) if self.peer else None
        outputs = mapped(Tensor.float, outputs)
        loss = self._imitation([outputs, *views], guidance, targets)
        return loss if peer is None else loss + self._mutual(outputs, mapped(Tensor.float, peer), targets)

    def _guidance(self, inputs: Batch, said: Sequence[Tensor] = ()) -> Views:
        """What the teacher makes of inputs; nothing where it has no part in the loss.

        Args:
            said: that, or the places of the samples where it is stored.
        """
        if said:
            return [self.stored(inputs, *said)] if self.stored is not None else said
        return [self.computing.in_float32(view) for view in self.teacher(inputs)] if self.imitates else ()

    def _mutual(self, outputs: Batch, peer: Batch, targets: Any) -> Tensor:
        """What the student and its peer learn of one another, and the peer of the labels."""
        temperature = self.recovery.temperature
        loss = imitation_loss(outputs, mapped(Tensor.detach, peer), temperature, self.kinds)
        loss = loss + imitation_loss(peer, mapped(Tensor.detach, outputs), temperature, self.kinds)
        return loss + self.workload.loss_function(peer, targets) if self.reads_labels else loss

    def _imitation(self, views: Views, guidance: Views, targets: Any) -> Tensor:
        if not self.imitates:
            return self.workload.loss_function(views[0], targets)
        imitation = self.distiller.loss(views, guidance, self.projections)
        if not self.reads_labels:
            return imitation
        alpha = self.recovery.alpha
        return alpha * imitation + (1 - alpha) * self.workload.loss_function(views[0], targets)

    @torch.no_grad()
    def _held_out_loss(self, data: MapDataset) -> float:
        self.student.eval()
        losses = []
        for inputs, targets in labelled_batches(data, self.batch_size, self.device):
            guidance = self._guidance(inputs)
            with tapping(self.student, self.modules, self.distiller.tap) as views:
                outputs = self.student(inputs)
            losses.append(float(self._imitation([outputs, *views], guidance, targets)) * rows(inputs))
        return self.ranks.agreed(sum(losses) / len(data))

    @torch.no_grad()
    def _mask(self) -> None:
        for weight, mask in self.masks:
            weight.mul_(mask)
