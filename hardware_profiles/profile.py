"""Measuring a machine: what each operation reaches at each precision, memory, dispatch, well-known models."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from ..errors import LoweringError
from ..spaces.candidate import Candidate, Grid, Quantization, QuantizedWeight, RoundedWeight
from ..spaces.layers import find_layers
from ..spaces.policy import BFLOAT16_BITS, FULL_PRECISION, LayerPolicy, Policy
from .bench import Bench, bench_cores
from .device_card import DeviceCard, Kernel, Throughput
from .fingerprint import machine, versions
from .runtime import RUNTIMES, Runtime, get_runtime
from .target import Target

REFERENCES = ("mobilenet_v2", "resnet18")
"""torchvision models, with random weights: latency does not depend on them."""

SECONDS = 0.6
"""Time budget of one timing."""

COPY_BYTES = 2**27
Progress = Callable[[str, int, int], None]
"""Told what is being measured, how many steps are done and how many there are."""


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
    Operation("linear", lambda c: nn.Linear(c, c), 1024, 16, lambda c: (64, c)),
)


def profile_target(target: Target, progress: Progress = lambda *_: None) -> DeviceCard:
    """Measure this machine as `target` runs it; about half a minute.

    Raises:
        TargetError: the target's runtime is not installed.
        LoweringError: the runtime refuses an uncompressed model.
    """
    runtime = get_runtime(target.runtime)
    steps = [
        "memory",
        "dispatch",
        *(f"{o.name} {part}" for o in OPERATIONS for part in ("kernels", "speed")),
        *REFERENCES,
    ]
    done = iter(range(len(steps)))

    def step(name: str) -> None:
        progress(name, next(done), len(steps))

    with tempfile.TemporaryDirectory(prefix="slimfront-profile-") as folder, _few_threads():
        path = Path(folder)
        step("memory")
        on_gpu = RUNTIMES[target.runtime].gpu  # in memory of its own, which copying on the host says nothing of
        memory = None if on_gpu else memory_bandwidth(bench_cores(target.threads))
        step("dispatch")
        dispatch_ms = _latency_ms(nn.Sequential(nn.Linear(8, 8)), torch.zeros(1, 8), target, runtime, path)
        kernels, throughput = [], []
        for operation in OPERATIONS:
            step(f"{operation.name} kernels")
            kernels += _kernels(operation, target, runtime, path)
            step(f"{operation.name} speed")
            throughput += _throughput(operation, target, runtime, path)
        references = {}
        for name in REFERENCES:
            step(name)
            model = getattr(torchvision.models, name)(weights=None).eval()
            references[name] = _latency_ms(model, torch.zeros(1, 3, 224, 224), target, runtime, path)
    return DeviceCard(
        measured_at=datetime.now(UTC),
        machine=machine(),
        versions=versions(runtime),
        memory_gb_per_s=memory,
        dispatch_us=dispatch_ms * 1e3,
        kernels=kernels,
        throughput=throughput,
        reference_ms=references,
    )


def memory_bandwidth(cores: list[int], repeats: int = 8) -> float:
    """10^9 bytes a second read and written while every core copies an array of its own (STREAM's copy, McCalpin 1995)."""

    def copy(core: int) -> None:
        os.sched_setaffinity(0, [core])  # of this thread alone
        np.copyto(targets[core], sources[core])

    sources = {core: np.ones(COPY_BYTES // 8) for core in cores}
    targets = {core: np.ones(COPY_BYTES // 8) for core in cores}
    seconds = []
    with ThreadPoolExecutor(len(cores)) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(copy, cores))
            seconds.append(time.perf_counter() - start)
    return 2 * COPY_BYTES * len(cores) / min(seconds) / 1e9


def synthetic_candidate(
    model: nn.Module, example: Tensor, weight_bits: int, activation_bits: int, symmetric: bool = False
) -> Candidate:
    """`model` with every layer at these bits, on grids that no data calibrated: for timing, not for scoring.

    Args:
        symmetric: the runtime takes activation grids with zero in their middle only.
    """
    layers = [layer.name for layer in find_layers(model, example)]
    policy = Policy(layers={name: LayerPolicy(weight_bits, activation_bits) for name in layers})
    weights = {name: _weight(model.get_submodule(name), weight_bits) for name in layers if weight_bits <= 8}
    levels = 2 ** min(activation_bits, 8)
    # Behind a ReLU calibration finds a zero point of 0, which is what lets a runtime fuse the two.
    zero = levels // 2 if symmetric else 0
    grid = Grid(np.array(0.05, np.float32), np.array(zero, np.uint8), 0, levels - 1)
    inputs = {name: grid for name in layers if activation_bits <= 8}
    has_halves, rounds_biases = weight_bits == BFLOAT16_BITS, activation_bits == BFLOAT16_BITS
    halves = {name: _rounded(model.get_submodule(name), rounds_biases) for name in layers if has_halves}
    return Candidate(policy, model, Quantization(weights, inputs, bfloat16=halves))


def _rounded(layer: nn.Module, rounds_bias: bool) -> RoundedWeight:
    bias = None if layer.bias is None else layer.bias.detach().numpy()  # type: ignore[operator]
    return RoundedWeight.of(layer.weight.detach().numpy(), bias, rounds_bias)  # type: ignore[operator]


def _weight(layer: nn.Module, bits: int) -> QuantizedWeight:
    weight = layer.weight.detach().numpy()  # type: ignore[operator]
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float32) / high
    integers = np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
    bias = None if layer.bias is None else layer.bias.detach().numpy()  # type: ignore[operator]
    return QuantizedWeight(integers, Grid(scale, np.zeros(len(weight), np.int8), -high - 1, high), bias)


def _kernels(operation: Operation, target: Target, runtime: Runtime, folder: Path) -> list[Kernel]:
    """What the runtime executes at every pair of bits that the target offers: all with float, all with 8 bits."""
    model, example = operation.chain(operation.small), torch.zeros(1, *operation.shape(operation.small))
    pairs = {(weights, FULL_PRECISION) for weights in target.weight_bits}
    pairs |= {(weights, 8) for weights in target.weight_bits if 8 in target.activation_bits}
    pairs |= {(8, activations) for activations in target.activation_bits if 8 in target.weight_bits}
    pairs = {pair for pair in pairs if pair[1] != BFLOAT16_BITS} | _bfloat16(target)
    found, symmetric = [], RUNTIMES[target.runtime].symmetric
    for weight_bits, activation_bits in sorted(pairs, reverse=True):
        candidate = synthetic_candidate(model, example, weight_bits, activation_bits, symmetric)
        try:
            artifact = runtime.lower(candidate, example, target, folder / f"kernel{runtime.suffix}")
            executed = runtime.load(artifact.path, target).executed_precisions().get("2")
        except LoweringError:
            continue  # such bits are none of this runtime's; policies that ask for them fail with the same words
        found.append(
            Kernel(
                operation=operation.name, weight_bits=weight_bits, activation_bits=activation_bits, executed=executed
            )
        )
    return found


def _bfloat16(target: Target) -> set[tuple[int, int]]:
    """The pair of bits of layers that compute in bfloat16, where the target offers both."""
    both = BFLOAT16_BITS in target.weight_bits and BFLOAT16_BITS in target.activation_bits
    return {(BFLOAT16_BITS, BFLOAT16_BITS)} if both else set()


def _throughput(operation: Operation, target: Target, runtime: Runtime, folder: Path) -> list[Throughput]:
    """Multiply-adds a second at full precision, with bfloat16 weights, in bfloat16 and in integers, each timed against the first."""
    model, shape = operation.chain(operation.channels), operation.shape(operation.channels)
    example = torch.zeros(1, *shape)
    gmacs = sum(layer.macs for layer in find_layers(model, example)) * target.batch * target.streams / 1e9
    float_path = _lowered(model, example, FULL_PRECISION, FULL_PRECISION, target, runtime, folder)
    inputs = np.zeros((target.batch, *shape), np.float32)
    found = []
    with Bench(target, float_path, inputs, bench_cores(target.threads)) as bench:
        reference_ms, *_ = bench.time_reference(SECONDS)
        for bits in ((FULL_PRECISION, FULL_PRECISION), (16, FULL_PRECISION), *_bfloat16(target), (8, 8)):
            if bits[0] not in target.weight_bits or bits[1] not in target.activation_bits:
                continue
            timing = bench.time(_lowered(model, example, *bits, target, runtime, folder), SECONDS)
            reached = (gmacs * 1e3 / reference_ms * ratio for ratio in (timing.speedup, timing.low, timing.high))
            found.append(
                Throughput(
                    operation=operation.name,
                    weight_bits=bits[0],
                    activation_bits=bits[1],
                    **dict(zip(("gmac_per_s", "low", "high"), reached, strict=True)),
                    noisy=timing.noisy,
                )
            )
    return found


def _lowered(
    model: nn.Module,
    example: Tensor,
    weight_bits: int,
    activation_bits: int,
    target: Target,
    runtime: Runtime,
    folder: Path,
) -> Path:
    symmetric = RUNTIMES[target.runtime].symmetric
    candidate = synthetic_candidate(model, example, weight_bits, activation_bits, symmetric)
    return runtime.lower(candidate, example, target, folder / f"{weight_bits}-{activation_bits}{runtime.suffix}").path


def _latency_ms(model: nn.Module, example: Tensor, target: Target, runtime: Runtime, folder: Path) -> float:
    """Latency of `model` at full precision by itself, one batch."""
    path = runtime.lower(Candidate(Policy(), model.eval()), example, target, folder / f"reference{runtime.suffix}").path
    inputs = np.zeros((target.batch, *example.shape[1:]), np.float32)
    with Bench(target, path, inputs, bench_cores(target.threads)) as bench:
        return bench.time_reference(SECONDS)[0]


@contextmanager
def _few_threads() -> Iterator[None]:
    """torch on one thread: it only exports here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
