"""Profiles a machine: throughput of each operation at each precision, memory bandwidth, dispatch, well-known models."""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from ...core.batch import INPUT
from ...core.errors import LoweringError
from ...core.threads import torch_threads
from ...spaces.models.layers import find_layers
from ...spaces.policies.candidate import Candidate
from ...spaces.policies.layer_policy import BFLOAT16_BITS, FULL_PRECISION
from ...spaces.policies.policy import Policy
from ..bench.bench import Bench, bench_cores
from ..cards.device_card import DeviceCard, Kernel, Throughput
from ..cards.target import Target
from ..runtimes.base import Runtime, get_runtime
from ..runtimes.registry import RUNTIMES
from .copying import bandwidth_by_bytes
from .fingerprint import machine, versions
from .synthetic import synthetic_candidate

REFERENCES = ("mobilenet_v2", "resnet18")
"""The torchvision models that are timed, with random weights, on which latency does not depend."""

SECONDS = 0.6
"""The time budget of one timing in seconds."""

BUDGET_SECONDS = 50.0
"""The time budget of the whole profile in seconds; a step that would exceed it is not begun."""

FLOAT, INTEGER = (FULL_PRECISION, FULL_PRECISION), (8, 8)
Pair = tuple[int, int]
"""A pair of weight bits and activation bits."""

Progress = Callable[[str, int, int], None]
"""A callback that gets the name of the measurement, the number of steps done and the number of all steps."""

T = TypeVar("T")


@dataclass(frozen=True)
class Operation:
    """A chain of equal layers: large enough to be bound by arithmetic, and a small one to ask for precisions.

    Attributes:
        layer: channels -> one layer. channels, small: of either chain.
        shape: of one sample, given the channels.
    """

    name: str
    layer: Callable[[int], nn.Module]
    channels: int
    small: int
    shape: Callable[[int], tuple[int, ...]]

    def chain(self, channels: int) -> nn.Module:
        """Four layers with activations between them."""
        return nn.Sequential(*(part for _ in range(4) for part in (self.layer(channels), nn.ReLU()))).eval()


OPERATIONS = (
    Operation("conv2d", lambda c: nn.Conv2d(c, c, 3, padding=1), 128, 16, lambda c: (c, 28, 28)),
    Operation("depthwise", lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c), 256, 16, lambda c: (c, 28, 28)),
    Operation("linear", lambda c: nn.Linear(c, c), 1024, 64, lambda c: (64, c)),
)
SMALL_SHAPE = (16, 8, 8)
SHORT, LONG = 1, 33
"""The numbers of tiny layers in two chains, from whose latencies the time of one more operation follows."""

MIDDLE = "2"
"""The layer of a chain whose precision is reported, because its neighbours have the same bits."""


def profile_target(target: Target, progress: Progress = lambda *_: None) -> DeviceCard:
    """Measure this machine as `target` runs it, for at most a minute; the card names the steps that there was no time for.

    Raises:
        TargetError: the target's runtime is not installed.
        LoweringError: the runtime refuses an uncompressed model.
    """
    steps = ["memory", "dispatch", *(f"{operation.name} speed" for operation in OPERATIONS), *REFERENCES, "kernels"]
    done = iter(range(len(steps)))

    def step(name: str) -> None:
        progress(name, next(done), len(steps))

    with tempfile.TemporaryDirectory(prefix="slimfront-profile-") as folder, torch_threads(1):
        profiler = _Profiler(target, get_runtime(target.runtime), Path(folder), time.monotonic() + BUDGET_SECONDS)
        step("memory")
        on_gpu = RUNTIMES[target.runtime].gpu  # in memory of its own, which copying on the host says nothing of
        memory = {} if on_gpu else bandwidth_by_bytes(bench_cores(target.threads))
        step("dispatch")
        # The duration of this step does not predict later ones: it loads the libraries of lowering and timing.
        dispatch_ms = profiler.chain_ms(SHORT)
        operation_us = profiler.operation_us(dispatch_ms)
        for operation in OPERATIONS:
            step(f"{operation.name} speed")
            profiler.speed(operation)
        for name in REFERENCES:
            step(name)
            profiler.reference(name)
        step("kernels")
        profiler.ask()
    return DeviceCard(
        measured_at=datetime.now(UTC),
        machine=machine(),
        versions=versions(profiler.runtime),
        memory_gb_per_s=memory[max(memory)] if memory else None,
        gb_per_s_by_bytes=memory,
        dispatch_us=dispatch_ms * 1e3,
        operation_us=operation_us,
        kernels=sorted(profiler.kernels, key=lambda k: (_place(k.operation), -k.weight_bits, -k.activation_bits)),
        throughput=sorted(profiler.throughput, key=lambda t: (_place(t.operation), -t.weight_bits, -t.activation_bits)),
        reference_ms=profiler.reference_ms,
        left_out=profiler.left_out,
    )


@dataclass
class _Profiler:
    """What was found so far.

    Attributes:
        deadline: `time.monotonic()` at which the profile ends.
        longest: seconds that the longest step so far took; what lasts as long has to be done by the deadline.
        left_out: what there was no time for.
    """

    target: Target
    runtime: Runtime
    folder: Path
    deadline: float
    longest: float = 0.0
    kernels: list[Kernel] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    reference_ms: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def has_time(self, step: str) -> bool:
        """Whether a step may begin; otherwise it is left out."""
        if time.monotonic() + self.longest <= self.deadline:
            return True
        self.left_out.append(step)
        return False

    def begun(self, step: Callable[..., T], *arguments: object) -> T:
        """What a step gives, its duration noted."""
        start = time.monotonic()
        try:
            return step(*arguments)
        finally:
            self.longest = max(self.longest, time.monotonic() - start)

    def chain_ms(self, layers: int) -> float:
        """Latency of a chain of layers that compute next to nothing."""
        chain = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(8, 8), nn.ReLU())))
        return self.latency_ms(chain, torch.zeros(1, 8))

    def operation_us(self, dispatch_ms: float) -> float | None:
        """Microseconds that one more operation takes, however little it computes; None where there is no time to find out."""
        if not self.has_time("operation"):
            return None
        return max(0.0, self.begun(self.chain_ms, LONG) - dispatch_ms) / (LONG - SHORT) * 1e3

    def speed(self, operation: Operation) -> None:
        """Multiply-adds a second in float and at every pair of bits with arithmetic of its own, timed against float."""
        if not self.has_time(f"{operation.name} speed"):
            return
        model, shape = operation.chain(operation.channels), operation.shape(operation.channels)
        example = torch.zeros(1, *shape)
        gmacs = sum(layer.macs for layer in find_layers(model, example)) * self.target.batch * self.target.streams / 1e9
        path = self.begun(self.lowered, model, example, FLOAT)
        inputs = {INPUT: np.zeros((self.target.batch, *shape), np.float32)}
        with Bench(self.target, path, inputs, bench_cores(self.target.threads)) as bench:
            reference_ms, *_ = self.begun(bench.time_reference, SECONDS)
            for pair in (FLOAT, INTEGER, (BFLOAT16_BITS, FULL_PRECISION), (BFLOAT16_BITS, BFLOAT16_BITS)):
                if self._offers(pair) and self.has_time(f"{operation.name} {_written(pair)} speed"):
                    if pair != FLOAT:
                        path = self.begun(self.lowered, model, example, pair)
                    self._reached(operation, pair, path, bench, gmacs * 1e3 / reference_ms)

    def _reached(self, operation: Operation, pair: Pair, path: Path, bench: Bench, float_gmac_per_s: float) -> None:
        """Note how fast an artifact is, and which kernel it ran."""
        timing = self.begun(bench.time, path, SECONDS)
        reached = (float_gmac_per_s * ratio for ratio in (timing.speedup, timing.low, timing.high))
        self.throughput.append(
            Throughput(
                operation=operation.name,
                weight_bits=pair[0],
                activation_bits=pair[1],
                **dict(zip(("gmac_per_s", "low", "high"), reached, strict=True)),
                noisy=timing.noisy,
            )
        )
        executed = self.runtime.load(path, self.target).executed_precisions()
        self._found(operation, pair, executed.get(MIDDLE))

    def reference(self, name: str) -> None:
        """Latency of a well-known model at full precision."""
        if self.has_time(name):
            model = getattr(torchvision.models, name)(weights=None)
            self.reference_ms[name] = self.begun(self.latency_ms, model, torch.zeros(1, 3, 224, 224))

    def ask(self) -> None:
        """Record what the runtime executes at the pairs of bits that were not timed."""
        model, example = _asked_model(), torch.zeros(1, *SMALL_SHAPE)
        known = {(kernel.operation, kernel.weight_bits, kernel.activation_bits) for kernel in self.kernels}
        for pair in self._pairs():
            asked = [operation for operation in OPERATIONS if (operation.name, *pair) not in known]
            if not asked or not self.has_time(f"{_written(pair)} kernels"):
                continue
            try:
                executed = self.begun(self._executed, model, example, pair)
            except LoweringError:
                continue  # the runtime does not support these bits; policies that ask for them fail with the same message
            for operation in asked:
                self._found(operation, pair, executed.get(f"{operation.name}.{MIDDLE}"))

    def _pairs(self) -> list[Pair]:
        """Pairs of bits that the target offers: all with float, all with 8 bits; the most common first."""
        weight_bits, activation_bits = self.target.weight_bits, self.target.activation_bits
        pairs = {(bits, other) for bits in weight_bits for other in (FULL_PRECISION, 8)}
        pairs |= {(8, bits) for bits in activation_bits if bits != BFLOAT16_BITS} | {(BFLOAT16_BITS, BFLOAT16_BITS)}
        first = [FLOAT, INTEGER, (8, FULL_PRECISION)]
        return [*filter(self._offers, [*first, *sorted(pairs.difference(first), reverse=True)])]

    def _offers(self, pair: Pair) -> bool:
        return pair[0] in self.target.weight_bits and pair[1] in self.target.activation_bits

    def _executed(self, model: nn.Module, example: Tensor, pair: Pair) -> dict[str, str]:
        return self.runtime.load(self.lowered(model, example, pair), self.target).executed_precisions()

    def _found(self, operation: Operation, pair: Pair, executed: str | None) -> None:
        weight_bits, activation_bits = pair
        self.kernels.append(
            Kernel(
                operation=operation.name, weight_bits=weight_bits, activation_bits=activation_bits, executed=executed
            )
        )

    def lowered(self, model: nn.Module, example: Tensor, pair: Pair) -> Path:
        """The artifact of a model with all its layers at these bits."""
        candidate = synthetic_candidate(model, example, *pair, RUNTIMES[self.target.runtime].symmetric)
        path = self.folder / f"{pair[0]}-{pair[1]}{self.runtime.suffix}"
        return self.runtime.lower(candidate, example, self.target, path).path

    def latency_ms(self, model: nn.Module, example: Tensor) -> float:
        """Latency of `model` at full precision by itself, one batch."""
        path = self.folder / f"reference{self.runtime.suffix}"
        path = self.runtime.lower(Candidate(Policy(), model.eval()), example, self.target, path).path
        inputs = {INPUT: np.zeros((self.target.batch, *example.shape[1:]), np.float32)}
        with Bench(self.target, path, inputs, bench_cores(self.target.threads)) as bench:
            return bench.time_reference(SECONDS)[0]


def _asked_model() -> nn.Module:
    """A small chain of every operation in sequence, so that one lowering reports on all of them."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for operation in OPERATIONS:
        if operation.name == "linear":
            parts["rows"] = nn.Flatten(2)
        parts[operation.name] = operation.chain(operation.small)
    return nn.Sequential(parts).eval()


def _place(operation: str) -> int:
    return [each.name for each in OPERATIONS].index(operation)


def _written(pair: Pair) -> str:
    return f"{pair[0]}/{pair[1]}"
