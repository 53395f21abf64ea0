"""Small random networks from a grammar: what layers of channels, tokens and vectors can follow one another.

A rule takes a `Draw` and the shape of what it reads, and returns a module and the shape of what that makes. Shapes are of one sample:
[channels, positions ...] of signals, images and volumes, [tokens, width] of tokens, [width] of vectors. The same chance makes the
same network; hypothesis's own `Random` shrinks it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from parts import (
    Attention,
    Branches,
    Excite,
    Fold,
    Function,
    Gated,
    GatedBySelf,
    GroupedQuery,
    NormOfChannels,
    PackedGate,
    PixelStep,
    Recurrent,
    Residual,
    RootMeanSquare,
    Scale,
    SharedUse,
    Tied,
    Unrolled,
    UsedInForward,
)
from torch import Tensor, nn

Shape = tuple[int, ...]
Made = tuple[nn.Module, Shape]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
WIDTHS = (16, 24, 32)
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU, nn.ReLU6, nn.ELU)


@dataclass
class Draw:
    """Choices of one network.

    Attributes:
        depth: how many rules may still nest.
    """

    chance: random.Random
    depth: int = 2

    def of(self, *choices):
        return choices[self.chance.randrange(len(choices))]

    def often(self, share: float = 0.5) -> bool:
        return self.chance.randrange(100) < 100 * share

    def deeper(self) -> Draw:
        return Draw(self.chance, self.depth - 1)


# Channels


def convolution(draw: Draw, shape: Shape, outputs: int | None = None) -> Made:
    channels, *positions = shape
    outputs = outputs or draw.of(*WIDTHS)
    kernel, dilation = draw.of(1, 3, 3), draw.of(1, 1, 2)
    groups = draw.of(1, 1, 1, math.gcd(channels, outputs), math.gcd(math.gcd(channels, outputs), 4))
    stride = 2 if min(positions) >= 4 and draw.often(0.2) else 1
    padding = dilation * (kernel // 2)
    mode = "reflect" if padding < min(positions) and draw.often(0.15) else "zeros"
    rank = len(positions)
    made = CONVOLUTIONS[rank](channels, outputs, kernel, stride, padding, dilation, groups, draw.often(0.7), mode)
    return made, (outputs, *((size - 1) // stride + 1 for size in positions))


def transposed(draw: Draw, shape: Shape) -> Made:
    channels, *positions = shape
    outputs = draw.of(*WIDTHS)
    if max(positions) > 8 or draw.often():
        return TRANSPOSED[len(positions)](channels, outputs, 3, padding=1), (outputs, *positions)
    return TRANSPOSED[len(positions)](channels, outputs, 2, 2), (outputs, *(2 * size for size in positions))


def norm(draw: Draw, shape: Shape) -> Made:
    channels, rank = shape[0], len(shape) - 1
    made = draw.of(
        lambda: BATCH_NORMS[rank](channels),
        lambda: BATCH_NORMS[rank](channels),
        lambda: nn.GroupNorm(math.gcd(draw.of(1, 2, 4, 8), channels), channels),
        lambda: INSTANCE_NORMS[rank](channels, affine=True),
        lambda: NormOfChannels(channels),
    )()
    is_flat = math.prod(shape[1:]) < 2 and isinstance(made, nn.modules.instancenorm._InstanceNorm)
    return (nn.Identity() if is_flat else made), shape


def activation(draw: Draw, shape: Shape) -> Made:
    if draw.often(0.1):
        return nn.PReLU(shape[0] if len(shape) > 1 else 1), shape
    return draw.of(*ACTIVATIONS)(), shape


def moved(draw: Draw, shape: Shape) -> Made:
    """Channels that change their places or number without a layer."""
    channels = shape[0]
    parts = draw.of(2, 4)
    if channels % 4:
        return nn.Identity(), shape
    name = draw.of("roll", "flip", "every_other", "half", "swap", "shuffle", "sum_halves", "interleave", "repeat")
    factor = {"every_other": 0.5, "half": 0.5, "sum_halves": 0.5, "repeat": 2}.get(name, 1)
    return Function(name, parts), (int(channels * factor), *shape[1:])


def pooled(draw: Draw, shape: Shape) -> Made:
    positions = shape[1:]
    if min(positions) < 4:
        return activation(draw, shape)
    pool = draw.of(MAX_POOLS, AVERAGE_POOLS)[len(positions)](2)
    return pool, (shape[0], *(size // 2 for size in positions))


def gate(draw: Draw, shape: Shape) -> Made:
    channels = shape[0]
    if draw.often() and channels % 2 == 0:
        return GatedBySelf(draw.of("chunk", "glu", "split", "slices")), (channels // 2, *shape[1:])
    one, made = convolution(draw, shape)
    other, _ = _alike(draw, shape, made)
    return Gated(one, other), made


def _alike(draw: Draw, shape: Shape, made: Shape) -> Made:
    """A convolution of `shape` to exactly `made`."""
    stride = tuple(-(-size // new) for size, new in zip(shape[1:], made[1:], strict=True))
    return CONVOLUTIONS[len(shape) - 1](shape[0], made[0], 1, stride), made


def residual(draw: Draw, shape: Shape) -> Made:
    inner, made = chain(draw.deeper(), shape, draw.of(1, 2, 3), keeps=True)
    if made == shape:
        return Residual(inner), shape
    if any(new > size for size, new in zip(shape[1:], made[1:], strict=True)):
        return inner, made
    return Residual(inner, _alike(draw, shape, made)[0]), made


def concatenation(draw: Draw, shape: Shape) -> Made:
    made = draw.of(*WIDTHS)
    one, _ = convolution_same(draw, shape, made)
    if draw.often():
        return Branches([one, nn.Identity()], draw.often()), (made + shape[0], *shape[1:])
    other, _ = convolution_same(draw, shape, draw.of(8, 16))
    return Branches([one, other], draw.often()), (made + other.out_channels, *shape[1:])


def convolution_same(draw: Draw, shape: Shape, outputs: int) -> tuple[nn.Conv1d | nn.Conv2d | nn.Conv3d, Shape]:
    kernel = draw.of(1, 3)
    made = CONVOLUTIONS[len(shape) - 1](shape[0], outputs, kernel, padding=kernel // 2)
    return made, (outputs, *shape[1:])


def shared(draw: Draw, shape: Shape) -> Made:
    """One weight that is used more than once."""
    channels = shape[0]
    layer, _ = convolution_same(draw, shape, channels)
    kind = draw.of("twice", "tied", "functional")
    if kind == "twice":
        return SharedUse(layer), shape
    return (Tied(layer) if kind == "tied" else UsedInForward(layer)), shape


def pixels(draw: Draw, shape: Shape) -> Made:
    channels, *positions = shape
    if len(positions) != 2:
        return scaled(draw, shape)
    if channels % 4 == 0 and max(positions) <= 4 and draw.often():
        return PixelStep(2, up=True), (channels // 4, *(2 * size for size in positions))
    if channels <= 16 and all(size % 2 == 0 for size in positions):
        return PixelStep(2, up=False), (channels * 4, *(size // 2 for size in positions))
    return scaled(draw, shape)


def scaled(draw: Draw, shape: Shape) -> Made:
    return draw.of(lambda: Scale(shape[0], len(shape) - 1), lambda: Excite(shape[0], len(shape) - 1))(), shape


CHANNEL_RULES: tuple[Callable[[Draw, Shape], Made], ...] = (
    convolution, convolution, convolution, norm, norm, activation, activation, moved, pooled, gate, concatenation, shared, pixels, scaled,
    transposed,
)  # fmt: skip


# Tokens


def linear(draw: Draw, shape: Shape, outputs: int | None = None) -> Made:
    outputs = outputs or draw.of(*WIDTHS)
    return nn.Linear(shape[-1], outputs, draw.often(0.8)), (*shape[:-1], outputs)


def vector_norm(draw: Draw, shape: Shape) -> Made:
    return draw.of(nn.LayerNorm, RootMeanSquare)(shape[-1]), shape


def perceptron(draw: Draw, shape: Shape) -> Made:
    width, hidden = shape[-1], draw.of(16, 32, 48)
    inner = nn.Sequential(nn.Linear(width, hidden), draw.of(*ACTIVATIONS)(), nn.Linear(hidden, width))
    return Residual(nn.Sequential(vector_norm(draw, shape)[0], *inner) if draw.often() else inner), shape


def gated_perceptron(draw: Draw, shape: Shape) -> Made:
    width, hidden = shape[-1], draw.of(16, 32)
    if draw.often():
        return Residual(PackedGate(width, hidden, swaps=draw.often())), shape
    gates = Gated(nn.Linear(width, hidden), nn.Linear(width, hidden))
    return Residual(nn.Sequential(gates, nn.Linear(hidden, width))), shape


def attention(draw: Draw, shape: Shape) -> Made:
    width = shape[-1]
    heads = draw.of(2, 4, 8)
    spelling = draw.of("module", "separate", "fused", "einsum", "grouped")
    if spelling == "grouped":
        return Residual(GroupedQuery(width, heads, heads // 2)), shape
    return Residual(Attention(width, heads, spelling)), shape


def recurrent(draw: Draw, shape: Shape) -> Made:
    hidden = draw.of(16, 24)
    if draw.often(0.3):
        return Unrolled(shape[-1], hidden), (shape[0], hidden)
    both, layers, kind = draw.often(0.3), draw.of(1, 1, 2), draw.of(nn.GRU, nn.LSTM, nn.RNN)
    return Recurrent(kind(shape[-1], hidden, layers, batch_first=True, bidirectional=both)), (
        shape[0],
        hidden * (1 + both),
    )


def mixed(draw: Draw, shape: Shape) -> Made:
    """A convolution over tokens, or tokens that change places, which channels do not notice."""
    if draw.often():
        return nn.Sequential(Function("turn"), nn.Conv1d(shape[1], shape[1], 3, padding=1), Function("turn")), shape
    return Function(draw.of("roll", "flip")), shape


TOKEN_RULES: tuple[Callable[[Draw, Shape], Made], ...] = (
    linear, linear, vector_norm, activation, perceptron, gated_perceptron, attention, attention, mixed, recurrent,
)  # fmt: skip
VECTOR_RULES: tuple[Callable[[Draw, Shape], Made], ...] = (linear, linear, activation, vector_norm, perceptron)


# Networks


def chain(draw: Draw, shape: Shape, length: int, keeps: bool = False) -> Made:
    """Some rules after one another; the number of dimensions stays."""
    rules = (VECTOR_RULES, TOKEN_RULES)[len(shape) - 1] if len(shape) < 2 else CHANNEL_RULES
    steps: list[nn.Module] = []
    if len(shape) >= 2:
        first, shape = convolution(draw, shape)
        steps.append(first)
    for _ in range(length):
        rule = residual if draw.depth > 0 and len(shape) >= 2 and draw.often(0.2) else draw.of(*rules)
        step, shape = rule(draw, shape)
        steps.append(step)
    return nn.Sequential(*steps), shape


def tokens(draw: Draw, shape: Shape, length: int) -> Made:
    steps: list[nn.Module] = []
    first, shape = linear(draw, shape)
    steps.append(first)
    for _ in range(length):
        step, shape = draw.of(*TOKEN_RULES)(draw, shape)
        steps.append(step)
    return nn.Sequential(*steps), shape


def network(chance: random.Random) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, its weights at random, and inputs [6, ...] of it."""
    draw = Draw(chance)
    kind = draw.of("images", "images", "images", "signals", "volumes", "tokens", "tokens")
    given: Shape = {"images": (3, 6, 6), "signals": (2, 12), "volumes": (2, 4, 4, 4), "tokens": (5, 12)}[kind]
    if kind == "tokens":
        body, shape = tokens(draw, given, draw.of(1, 2, 3))
        head, shape = Function(draw.of("mean_tokens", "first_token", "flatten")), shape
        width = shape[-1] * (shape[0] if head.name == "flatten" else 1)
    else:
        body, shape = chain(draw, given, draw.of(2, 3, 4, 5))
        head, width = _reduced(draw, shape)
    steps: list[nn.Module] = [body, head]
    if draw.often(0.4):
        hidden, (width,) = linear(draw, (width,))
        steps += [hidden, activation(draw, (width,))[0]]
    model = nn.Sequential(*steps, nn.Linear(width, 5))
    _randomise(model, chance.randrange(2**31))
    return model.eval(), torch.randn(6, *given, generator=torch.Generator().manual_seed(chance.randrange(2**31)))


def _reduced(draw: Draw, shape: Shape) -> tuple[nn.Module, int]:
    """Something that makes a vector of channels and positions."""
    channels, size = shape[0], math.prod(shape[1:])
    name = draw.of("mean", "mean", "max", "flatten", "flatten_last")
    if name.startswith("flatten") and channels * size > 1024:
        name = "mean"
    return Fold(name), channels * size if name.startswith("flatten") else channels


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    """Numbers of which no two are equal, in all that is trained and in the statistics of batch-norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        places = torch.randperm(tensor.numel(), generator=generator).view(tensor.shape)
        spread = (places + torch.rand((), generator=generator)) / tensor.numel()  # in [0, 1), no two equal
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(spread + 0.5)
        else:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 8
            tensor.copy_((2 * spread - 1) * (3 / fan_in) ** 0.5)
