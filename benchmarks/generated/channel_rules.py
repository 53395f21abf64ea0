"""What can follow channels: rules of [channels, positions ...], each a function of a `Draw` and a shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import channel_parts as wide
from draws import (
    ACTIVATIONS,
    AVERAGE_POOLS,
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    MAX_POOLS,
    TRANSPOSED,
    WIDTHS,
    Draw,
    Made,
    Shape,
)
from parts import (
    Attention,
    Branches,
    Excite,
    Function,
    Gated,
    GatedBySelf,
    NormOfChannels,
    PixelStep,
    Recurrent,
    Residual,
    Scale,
    SharedUse,
    Tied,
    UsedInForward,
)
from torch import nn
from torch.nn.utils import parametrizations


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
    groups = draw.of(1, 1, math.gcd(channels, outputs), math.gcd(math.gcd(channels, outputs), 4))
    options = {"groups": groups, "bias": draw.often(0.7)}
    kind, twice = TRANSPOSED[len(positions)], (outputs, *(2 * size for size in positions))
    if max(positions) > 8 or draw.often():
        dilation = draw.of(1, 1, 2)
        return kind(channels, outputs, 3, padding=dilation, dilation=dilation, **options), (outputs, *positions)
    if draw.often():
        return kind(channels, outputs, 3, 2, padding=1, output_padding=1, **options), twice
    return kind(channels, outputs, 2, 2, **options), twice


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


def respelt(draw: Draw, shape: Shape) -> Made:
    """As `moved`, in other words."""
    channels = shape[0]
    if channels % 4:
        return nn.Identity(), shape
    names = (wide.SAME, wide.SAME, wide.HALF, wide.TWICE if channels <= 32 else wide.HALF)
    name = draw.of(*draw.of(*names))
    factor = 0.5 if name in wide.HALF else 2 if name in wide.TWICE else 1
    if name == "view" and len(shape) == 3 and draw.often():
        return nn.ChannelShuffle(draw.of(2, 4)), shape
    return wide.Moved(name, draw.of(2, 4), channels), (int(channels * factor), *shape[1:])


def positioned(draw: Draw, shape: Shape) -> Made:
    """Positions that are added, moved or left out."""
    positions = shape[1:]
    name = draw.of("pad", "pad_edges", "nearest", "smooth", "turned", "cropped")
    if name in ("nearest", "smooth") and max(positions) > 6:
        name = "turned"
    if name == "cropped" and positions[-1] < 3:
        name = "pad"
    match name:
        case "pad":
            sizes = tuple(size + 1 for size in positions)
        case "pad_edges":
            sizes = tuple(size + 2 for size in positions)
        case "cropped":
            sizes = (*positions[:-1], positions[-1] - 1)
        case "turned":
            sizes = positions
        case _:
            sizes = tuple(2 * size for size in positions)
    return wide.Positions(name), (shape[0], *sizes)


def in_place(draw: Draw, shape: Shape) -> Made:
    inner, _ = convolution_same(draw, shape, shape[0])
    return wide.InPlace(draw.of("relu", "add", "half", "scaled"), inner), shape


def constant(draw: Draw, shape: Shape) -> Made:
    return wide.Constants(shape[0], shape[1:], draw.often()), shape


def over_channels(draw: Draw, shape: Shape) -> Made:
    channels, rank = shape[0], len(shape) - 1
    if draw.often():
        return wide.OverChannels(draw.of("softmax", "normalize", "sums", "neighbours"), channels, rank), shape
    mixes = CONVOLUTIONS[rank](1, 1, 3, padding=1)
    return wide.PositionGate(wide.OverChannels(draw.of("mean", "largest"), channels, rank), mixes), shape


def excited(draw: Draw, shape: Shape) -> Made:
    return draw.of(lambda: wide.ExciteByLinear(shape[0]), wide.ExciteByNeighbours)(), shape


def last(draw: Draw, shape: Shape) -> Made:
    """Linear layers and norms at every position."""
    width, hidden = shape[0], draw.of(16, 48)
    norms = draw.of(nn.LayerNorm, nn.RMSNorm)(width)
    inner = nn.Sequential(norms, nn.Linear(width, hidden), draw.of(*ACTIVATIONS)(), nn.Linear(hidden, width))
    return wide.Last(inner, width if draw.often() else None), shape


def as_tokens(draw: Draw, shape: Shape) -> Made:
    """A recurrent layer or attention over positions."""
    channels = shape[0]
    if draw.often() or channels % 8:
        hidden = draw.of(16, 24)
        kind = draw.of(nn.GRU, nn.LSTM)
        return wide.AsTokens(Recurrent(kind(channels, hidden, batch_first=True))), (hidden, *shape[1:])
    return Residual(wide.AsTokens(Attention(channels, draw.of(2, 4), draw.of("fused", "separate", "einsum")))), shape


def parted(draw: Draw, shape: Shape) -> Made:
    channels = shape[0]
    if channels % 2 or channels < 16:
        return convolution(draw, shape)
    half = (channels // 2, *shape[1:])
    layers = [convolution_same(draw, half, channels // 2)[0] for _ in range(2)]
    return wide.Parted(*layers, draw.often()), shape


def dense(draw: Draw, shape: Shape) -> Made:
    channels, growth = shape[0], draw.of(8, 16)
    steps: list[nn.Module] = []
    for _ in range(draw.of(1, 2)):
        layer, _ = convolution_same(draw, (channels, *shape[1:]), growth)
        steps.append(nn.Sequential(BATCH_NORMS[len(shape) - 1](channels), nn.ReLU(), layer))
        channels += growth
    return wide.Dense(steps), (channels, *shape[1:])


def hourglass(draw: Draw, shape: Shape) -> Made:
    channels, *positions = shape
    if any(size % 2 for size in positions):
        return convolution(draw, shape)
    rank, inner, up = len(positions), draw.of(*WIDTHS), draw.of(8, 16)
    down = CONVOLUTIONS[rank](channels, inner, 2, 2)
    middle = nn.Sequential(BATCH_NORMS[rank](inner), nn.ReLU(), CONVOLUTIONS[rank](inner, inner, 3, padding=1))
    return wide.Hourglass(down, middle, TRANSPOSED[rank](inner, up, 2, 2)), (channels + up, *positions)


def joined(draw: Draw, shape: Shape) -> Made:
    outputs = draw.of(*WIDTHS)
    layers = [convolution_same(draw, shape, outputs)[0] for _ in range(2)]
    operation = draw.of("scaled", "maximum", "where", "lerp", "stacked", "products")
    return wide.Both(*layers, operation), (outputs, *shape[1:])


def shared_further(draw: Draw, shape: Shape) -> Made:
    channels, rank = shape[0], len(shape) - 1
    one, _ = convolution_same(draw, shape, channels)
    if draw.often():
        return wide.Pyramid(one), shape
    other, _ = convolution_same(draw, shape, channels)
    return wide.SharedNorm(one, other, BATCH_NORMS[rank](channels)), shape


def unusual(draw: Draw, shape: Shape) -> Made:
    """A layer whose weight is computed, pixels that become channels, attention among channels."""
    channels, *positions = shape
    if draw.often(0.3):
        return wide.ChannelAttention(*(convolution_same(draw, shape, channels)[0] for _ in range(3))), shape
    if len(positions) != 2:
        layer, _ = convolution_same(draw, shape, channels)
        return draw.of(parametrizations.weight_norm, parametrizations.spectral_norm)(layer), shape
    if channels <= 16 and all(size % 2 == 0 for size in positions) and draw.often():
        return wide.Focus(), (4 * channels, *(size // 2 for size in positions))
    return wide.Standardized(channels, 16, 3, padding=1), (16, *positions)


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
    inner, made = chain(draw.deeper(), shape, draw.of(1, 2, 3))
    if made == shape:
        return Residual(inner), shape
    pairs = list(zip(shape[1:], made[1:], strict=True))
    if any(new > size or -(-size // -(-size // new)) != new for size, new in pairs):  # no stride makes these sizes
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
    transposed, respelt, positioned, in_place, constant, over_channels, excited, last, as_tokens, parted, dense, hourglass,
    joined, shared_further, unusual,
)  # fmt: skip


def chain(draw: Draw, shape: Shape, length: int) -> Made:
    """Some rules after one another; the number of dimensions stays."""
    first, shape = convolution(draw, shape)
    steps: list[nn.Module] = [first]
    for _ in range(length):
        rule = residual if draw.depth > 0 and draw.often(0.2) else draw.of(*CHANNEL_RULES)
        step, shape = rule(draw, shape)
        steps.append(step)
    return nn.Sequential(*steps), shape
