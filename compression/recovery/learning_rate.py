"""How the user's model is best trained: a learning rate by a range test, and what a training computes with by timing.

In the range test (Smith 2017, "Cyclical Learning Rates", arXiv:1506.01186, section 3.3) a compressed copy is trained for a few steps,
each at a higher rate than the one before, and its loss on one batch that is not trained on is watched. It falls, stays near its
least, and rises where steps are too large.

On a processor, another copy is trained before for a few steps in every way that the study leaves open: with the channels of images
last in memory, which changes nothing but rounding, and in bfloat16. Which is faster depends on network and processor; the
range test is made in the way that is taken.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor, nn

from ...core.batch import HOST, device_of, device_of_model, moved, rows, stacked
from ...core.errors import CompressionError, describe_exception
from ...core.interrupts import raise_if_interrupted
from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import find_layers
from ...spaces.policies.policy import LayerPolicy, Policy, Recovery
from ...spaces.policies.pruning import Pruning
from ...workloads.workload import Workload
from ..activations import bytes_read
from ..batches import shuffled_batches, subset
from ..pruning.prune import pruned_copy, reestimate_batch_norm
from .computing import convolves_images, has_bfloat16
from .train import training_step

logger = logging.getLogger(__name__)

STEPS = 48
"""Steps of the test, at rates that rise evenly on a logarithmic scale."""

FEWEST_STEPS = 12
"""Steps of the test of a model so large that more would take longer than `SECONDS`."""

SECONDS = 20.0
"""The seconds that the test aims to take at most."""

FORWARDS_OF_A_STEP = 4
"""A step and the loss after it take about as long as so many passes of the uncompressed model: two of it, and four of a student of a
third of its operations, two of them back."""

MOST_READ = 2**29
"""Bytes of modules' inputs in the uncompressed model, of which a student with half of the channels keeps half for its gradients, that a
batch of the test takes on a processor; a step holds a few times as much."""

LEAST_BATCH = 4
"""The fewest samples of a step: batch-norm needs several."""

LEAST_CALIBRATION = 16
"""The fewest calibration samples that channels of a slow model are reconstructed from for the test."""

LOSSES_OF_A_STEP = 3
"""A step and the loss after it take about so many times as long as the loss: a step runs a network three times, forward and back."""

RANGES = {"sgd": (1e-4, 1.0), "adamw": (1e-5, 0.1), "adafactor": (1e-4, 1.0)}
"""Optimizer -> the lowest and the highest rate tried."""

NEAR_LEAST = 0.05
"""A loss is near the least if it is above it by no more than this share of the whole fall."""

TOO_MUCH = 2.0
"""The test ends where the loss is so many times that at the start."""

MARGIN = 0.5
"""The rate taken is this part of the highest one with a loss near the least, at which training is about to become unstable."""

LEARNING_RATE, CHANNELS_LAST, MIXED_PRECISION = "learning_rate", "channels_last", "mixed_precision"
WAYS: tuple[Mapping[str, bool], ...] = (
    {},
    {CHANNELS_LAST: True},
    {MIXED_PRECISION: True},
    {CHANNELS_LAST: True, MIXED_PRECISION: True},
)
"""Settings of a recovery that say what it computes with, the plain way first."""

ROUNDS = 3
"""Steps of each way that are timed, after a first one, which is longer. One way after the other, since each has an optimizer's state."""

WORTH = 1.15
"""A layout, and bfloat16 on top of the better layout, is taken where it makes steps at least so many times as fast."""


@dataclass(frozen=True)
class FoundTraining:
    """What was found of how a model is best trained.

    Attributes:
        rate: the peak learning rate for recoveries, where it is looked for with two significant digits; the same for the same seed
            and way where the test is not shortened for a slow model.
        epoch_s: seconds that an epoch of recovery takes on the model with half of its channels.
        way: settings of the recovery that make it faster; none where the plain one is as fast.
        gain: how many times as fast they make it.
    """

    rate: float
    epoch_s: float
    way: Mapping[str, bool] = field(default_factory=dict)
    gain: float = 1.0


def found_training(
    workload: Workload,
    recovery: Recovery,
    groups: Sequence[ChannelGroup],
    seed: int,
    batch_size: int,
    open_keys: Collection[str] = (LEARNING_RATE,),
) -> FoundTraining:
    """Find those of the settings `open_keys` of recoveries of a workload's model: a learning rate, and the fastest of `WAYS`.

    They are tried on the model with half of its channels, or half of its weights where no channel can go. A model so slow that the fewest
    steps would take longer than `SECONDS`, or whose batch is larger than `MOST_READ`, is tried on smaller batches, and the rate grows with the square root of the batch of a step, which keeps
    the variance of a step (Krizhevsky 2014, arXiv:1404.5997; of Adam: Malladi et al. 2022, arXiv:2205.10287).
    """
    with torch.random.fork_rng():
        sample_s = _sample_s(workload)
        tried = min(batch_within(SECONDS, sample_s, batch_size), _fitting(workload) or batch_size)
        torch.manual_seed(seed)
        student = _compressed(_shortened(workload, sample_s), groups, seed)
        with torch.random.fork_rng():
            way, gain, step_s = _fastest_way(deepcopy(student), workload, recovery, seed, tried, open_keys)
        rate = recovery.learning_rate
        if LEARNING_RATE in open_keys:
            seconds: list[float] = []
            curve = list(_curve(workload, replace(recovery, **way), student, seed, tried, seconds))
            step_s = statistics.median(seconds)  # of more steps than were timed before
            low, high = RANGES[recovery.optimizer]
            highest = min(high, highest_near_least(curve, low) * math.sqrt(recovery.accumulate * batch_size / tried))
            rate = float(f"{MARGIN * highest:.2g}")
    return FoundTraining(rate, step_s * math.ceil(len(workload.train) / tried), way, gain)


@torch.no_grad()
def _sample_s(workload: Workload) -> float:
    """Seconds that the uncompressed model takes for one sample in a batch of a few."""
    few = moved(stacked([workload.train[index][0] for index in range(min(LEAST_BATCH, len(workload.train)))]),
                device_of(workload.example_input))  # fmt: skip
    workload.model.eval()(few)  # the first time a model runs takes longer
    began = time.perf_counter()
    workload.model(few)
    return (time.perf_counter() - began) / rows(few)


def _fitting(workload: Workload) -> int | None:
    """The samples of a step that `MOST_READ` allows, at least `LEAST_BATCH`; None on a GPU, whose memory is for training."""
    if device_of(workload.example_input) != HOST:
        return None
    return max(LEAST_BATCH, MOST_READ // max(1, bytes_read(workload.model.eval(), workload.example_input)))


def batch_within(seconds: float, sample_s: float, batch_size: int) -> int:
    """The samples of a step: `batch_size`, or a power of two of which `FEWEST_STEPS` fit, at least `LEAST_BATCH`."""
    fitting = seconds / (FEWEST_STEPS * FORWARDS_OF_A_STEP * sample_s)
    if fitting >= batch_size:
        return batch_size
    return min(batch_size, max(LEAST_BATCH, 2 ** int(math.log2(max(fitting, 1)))))


def _shortened(workload: Workload, sample_s: float) -> Workload:
    """The workload with no more calibration samples than its model runs in a fifth of `SECONDS`."""
    most = max(LEAST_CALIBRATION, int(SECONDS / 5 / sample_s))
    if most >= len(workload.calibration):
        return workload
    return replace(workload, calibration=subset(workload.calibration, range(most)))


def _compressed(workload: Workload, groups: Sequence[ChannelGroup], seed: int) -> nn.Module:
    narrows = any(group.can_lose(Pruning.multiple) for group in groups)
    found = () if narrows else find_layers(workload.model, workload.example_input)
    layers = {layer.name: LayerPolicy(sparsity=0.5) for layer in found}
    policy = Policy(
        0.5 if narrows else 1.0, layers=layers, pruning=Pruning(reduction="reconstruct" if narrows else "drop")
    )
    student = pruned_copy(workload.model, workload.example_input, policy, groups, workload, seed)
    reestimate_batch_norm(student, workload.calibration)
    return student


def _curve(
    workload: Workload, recovery: Recovery, student: nn.Module, seed: int, batch_size: int, step_s: list[float]
) -> Iterator[tuple[float, float]]:
    """(rate, loss after a step at this rate), the first at rate 0; the seconds of each step are added to `step_s`."""
    step, loss = training_step(student, workload, recovery, batch_size)
    batches = shuffled_batches(workload.train, batch_size, device_of_model(student), seed).after()
    (probe,) = next(batches)
    student.train()
    start = loss(probe)
    yield 0.0, start
    began = time.perf_counter()
    loss(probe)  # again: the first time a model runs takes longer
    steps = steps_within(SECONDS, LOSSES_OF_A_STEP * (time.perf_counter() - began))
    low, high = RANGES[recovery.optimizer]
    for index, (batch,) in enumerate(islice(batches, steps)):
        rate = low * (high / low) ** (index / (steps - 1))
        began = time.perf_counter()
        step(batch, rate)
        step_s.append(time.perf_counter() - began)
        found = loss(probe)
        if not found <= TOO_MUCH * start:
            return
        yield rate, found


def _fastest_way(
    student: nn.Module, workload: Workload, recovery: Recovery, seed: int, batch_size: int, open_keys: Collection[str]
) -> tuple[Mapping[str, bool], float, float]:
    """The way of computing to take, how many times as fast as the plain one it is, and the seconds of a step.

    Ways are compared by processor time, which work of others on the machine hardly changes.
    """
    choices = _choices(student, workload, open_keys)
    (batch,) = next(shuffled_batches(workload.train, batch_size, device_of_model(student), seed).after())
    ways, spent, passed = [], [], []
    for way in (each for each in WAYS if set(each) <= choices):
        try:
            seconds = _step_seconds(student, workload, replace(recovery, **way), batch_size, batch)
        except Exception as error:  # the user's code may raise anything, as of an operation without bfloat16
            raise_if_interrupted(error)
            if not way:
                raise
            logger.warning("recoveries do without %s: %s", " and ".join(sorted(way)), describe_exception(error))
        else:
            ways.append(way)
            spent.append(seconds[0])
            passed.append(seconds[1])
    best = chosen_way(ways, spent)
    return ways[best], spent[0] / spent[best], passed[best]


def _step_seconds(
    student: nn.Module, workload: Workload, recovery: Recovery, batch_size: int, batch: Sequence[Tensor]
) -> tuple[float, float]:
    """Seconds of a step, of the processor and by the clock: the least of some after the first, which is longer.

    Raises:
        CompressionError: the loss of bfloat16 is no number.
        Exception: of the user's code.
    """
    step, loss = training_step(student, workload, recovery, batch_size)
    student.train()  # what was looked at before may have left it in eval mode
    rate, started = RANGES[recovery.optimizer][0], time.process_time()
    step(batch, rate)
    if recovery.mixed_precision and not math.isfinite(loss(batch)):
        raise CompressionError("the loss is no number")
    spent, passed = [], []
    while not spent or (len(spent) < ROUNDS and time.process_time() - started < SECONDS / 4 / len(WAYS)):
        began = time.process_time(), time.perf_counter()
        step(batch, rate)
        spent.append(time.process_time() - began[0])
        passed.append(time.perf_counter() - began[1])
    return min(spent), min(passed)


def _choices(student: nn.Module, workload: Workload, open_keys: Collection[str]) -> set[str]:
    """The settings that may be tried: those left open that make a difference for a network on its processor."""
    example = workload.example_input
    if device_of(example) != HOST:
        return set()
    matters = {CHANNELS_LAST: convolves_images(student, example), MIXED_PRECISION: has_bfloat16()}
    return {key for key in matters if key in open_keys and matters[key]}


def chosen_way(ways: Sequence[Mapping[str, bool]], seconds: Sequence[float]) -> int:
    """Which to take of the ways timed, the plain one first: bfloat16 has to be worth its rounding."""
    best = 0
    for is_mixed in (False, True):
        found = [index for index, way in enumerate(ways) if way.get(MIXED_PRECISION, False) == is_mixed]
        if found and (least := min(found, key=lambda index: seconds[index])) != best:
            best = least if seconds[best] >= WORTH * seconds[least] else best
    return best


def steps_within(seconds: float, step_s: float) -> int:
    """How many steps of so many seconds the test has: as many as fit, from `FEWEST_STEPS` to `STEPS`."""
    return max(FEWEST_STEPS, min(STEPS, int(seconds / step_s)))


def highest_near_least(curve: Sequence[tuple[float, float]], lowest: float) -> float:
    """The highest rate of a curve whose loss, the median of three neighbours, is near the least; `lowest` where no loss falls.

    Args:
        curve: (rate, loss) in the order of rates, the first before any step.
    """
    start, losses = curve[0][1], [loss for _, loss in curve]
    smooth = [statistics.median(losses[max(0, index - 1) : index + 2]) for index in range(len(losses))]
    limit = min(smooth) + NEAR_LEAST * max(start - min(smooth), 0.0)
    return max((rate for (rate, _), loss in zip(curve, smooth, strict=True) if loss <= limit), default=0.0) or lowest
