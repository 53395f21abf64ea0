"""How a training computes: in which precision, with which layout of images, compiled or not.

None of it changes which objects the student and its weights are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...core.batch import Batch, device_of_model, mapped, repeated, tensors_of
from ...core.errors import CompressionError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...spaces.policies.policy import Recovery
from ...spaces.policies.recovery import AUTO

COMPILED_STEPS = 1000
"""Steps of the optimizer from which on "auto" compiles on a GPU: compiling takes about a minute."""

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

logger = logging.getLogger(__name__)


class Computing:
    """How one training computes.

    Attributes:
        precision: of the forward passes; None for float32.
        scaler: scales the loss where the precision is float16, whose small gradients would become zero, and else does nothing.
        is_channels_last: whether images are given to the networks with their channels last in memory.
    """

    def __init__(self, student: nn.Module, example: Batch, recovery: Recovery) -> None:
        self._device = device_of_model(student)
        self.precision = precision_of(self._device) if recovery.mixed_precision else None
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=self.precision == torch.float16)
        self.is_channels_last = self._pays_channels_last(recovery) and _takes_channels_last(student, example, recovery)

    def _pays_channels_last(self, recovery: Recovery) -> bool:
        if recovery.channels_last == AUTO:
            return self._device.type == "cuda" and self.precision is not None
        return bool(recovery.channels_last)

    def autocast(self) -> torch.autocast:
        """A context in which forward passes compute in the precision."""
        return torch.autocast(self._device.type, self.precision or torch.bfloat16, enabled=self.precision is not None)

    def laid_out(self, inputs: Batch) -> Batch:
        """The inputs, images with their channels last in memory if that is how this training computes."""
        return mapped(_channels_last, inputs) if self.is_channels_last else inputs

    def in_float32(self, outputs: Batch) -> Batch:
        """Outputs of a forward pass as losses take them."""
        return outputs if self.precision is None else mapped(Tensor.float, outputs)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step on gradients of the scaled loss, left out where one overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def step_rate(self, schedule: LRScheduler) -> None:
        """The next learning rate, also after a step of the optimizer that was left out."""
        with warnings.catch_warnings():
            if self.scaler.is_enabled():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            schedule.step()


def precision_of(device: torch.device) -> torch.dtype | None:
    """The float type of 16 bits that a device multiplies itself; None, which is logged, where there is none."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if has_bfloat16():
        return torch.bfloat16
    logger.warning("mixed precision left out: this machine has no bfloat16 arithmetic; training in float32")
    return None


def has_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 itself."""
    return torch.cpu._is_avx512_bf16_supported()


def _channels_last(inputs: Tensor) -> Tensor:
    is_image = inputs.ndim == 4 and inputs.is_floating_point()
    return inputs.to(memory_format=torch.channels_last) if is_image else inputs


def convolves_images(student: nn.Module, example: Batch) -> bool:
    """Whether a network has convolutions and takes images: the layout of others makes no difference."""
    has_images = any(tensor.ndim == 4 and tensor.is_floating_point() for tensor in tensors_of(example))
    return has_images and any(isinstance(module, CONVOLUTIONS) for module in student.modules())


def _takes_channels_last(student: nn.Module, example: Batch, recovery: Recovery) -> bool:
    """Whether a network convolves images and runs on such with their channels last: a `view` in it may not.

    Raises:
        CompressionError: it does not run, and `recovery` asks for it.
    """
    if not convolves_images(student, example):
        return False
    try:
        with torch.no_grad():
            student.eval()(mapped(_channels_last, repeated(example, 2)))
    except Exception as error:  # the user's code may raise anything
        raise_if_interrupted(error)
        problem = f"the model does not run on images with their channels last: {describe_exception(error)}"
        if recovery.channels_last != AUTO:
            raise CompressionError(f"{problem}; recovery.channels_last: false trains it as it is") from error
        logger.warning("%s; training with channels first", problem)
        return False
    return True


def wants_compiling(recovery: Recovery, device: torch.device, steps: int) -> bool:
    """Whether a training of so many steps is to be compiled."""
    if recovery.compile == AUTO:
        return device.type == "cuda" and steps >= COMPILED_STEPS
    return bool(recovery.compile)


def compiled(student: nn.Module, recovery: Recovery) -> Callable[[Batch], Batch]:
    """The student's forward pass compiled, on the same weights.

    Where it cannot be compiled, the forward pass as it is takes its place if `recovery` leaves the choice, and that is logged.
    """
    from torch._dynamo.exc import TorchDynamoException  # only here: it takes two seconds to import

    torch.compiler.reset()  # torch compiles a function anew only a few times, and every student's structure is another
    forward: Callable[[Batch], Batch] = torch.compile(student)

    def run(inputs: Batch) -> Batch:
        nonlocal forward
        try:
            return forward(inputs)
        except TorchDynamoException as error:
            problem = f"the recovery cannot be compiled: {describe_exception(error)}"
            if recovery.compile != AUTO:
                raise CompressionError(f"{problem}; recovery.compile: false trains without") from error
            logger.warning("%s; training without", problem)
            forward = student
            return student(inputs)

    return run
