"""Modules over channels, axis 1, that generated networks are made of, as users write them; see `parts` for the plainest ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Moved(nn.Module):
    """Channels that change their places, spelt as users do. The number of parts is that of a channel shuffle."""

    def __init__(self, name: str, parts: int, channels: int) -> None:
        super().__init__()
        self.name, self.parts, self.channels = name, parts, channels
        self.order: Tensor
        self.register_buffer("order", torch.arange(channels).view(parts, -1).t().flatten())

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)

    def view(self, x: Tensor) -> Tensor:
        n, channels, *sizes = x.shape
        return x.view(n, self.parts, channels // self.parts, *sizes).transpose(1, 2).contiguous().view(n, -1, *sizes)

    def written_down(self, x: Tensor) -> Tensor:
        taken_apart = x.reshape(x.shape[0], self.parts, self.channels // self.parts, *x.shape[2:])
        return taken_apart.transpose(1, 2).reshape(x.shape)

    def permuted(self, x: Tensor) -> Tensor:
        taken_apart = x.unflatten(1, (self.parts, -1))
        return taken_apart.permute(0, 2, 1, *range(3, taken_apart.ndim)).flatten(1, 2)

    def indexed(self, x: Tensor) -> Tensor:
        return x[:, self.order]

    def selected(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)

    def strides(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, first :: self.parts] for first in range(self.parts)], 1)

    def rolled_back(self, x: Tensor) -> Tensor:
        return x.roll(-3, 1)

    def rolled_half(self, x: Tensor) -> Tensor:
        return torch.roll(x, x.shape[1] // 2, dims=1)

    def flipped_halves(self, x: Tensor) -> Tensor:
        return torch.cat([half.flip(1) for half in x.tensor_split(2, 1)], 1)

    def negated_half(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return torch.cat([-one, other], 1)

    # These make half as many.

    def odd(self, x: Tensor) -> Tensor:
        return x[:, 1::2]

    def pairs(self, x: Tensor) -> Tensor:
        return x[:, ::2] - x[:, 1::2]

    def back(self, x: Tensor) -> Tensor:
        return x[:, -(x.shape[1] // 2) :]

    def middle(self, x: Tensor) -> Tensor:
        return x.narrow(1, x.shape[1] // 4, x.shape[1] // 2)

    def maxout(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)

    def max_of_halves(self, x: Tensor) -> Tensor:
        return torch.maximum(*x.chunk(2, 1))

    def unbound(self, x: Tensor) -> Tensor:
        one, other = x.unflatten(1, (2, -1)).unbind(1)
        return one - 2 * other

    # These make twice as many.

    def padded(self, x: Tensor) -> Tensor:
        return functional.pad(x, (0, 0) * (x.ndim - 2) + (0, x.shape[1]))

    def both_signs(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], 1)

    def repeated_each(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 1)


SAME = (
    "view", "written_down", "permuted", "indexed", "selected", "strides", "rolled_back", "rolled_half", "flipped_halves", "negated_half",
)  # fmt: skip
HALF = ("odd", "pairs", "back", "middle", "maxout", "max_of_halves", "unbound")
TWICE = ("padded", "both_signs", "repeated_each")


class Positions(nn.Module):
    """Positions that change, channels that do not."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)

    def pad(self, x: Tensor) -> Tensor:
        return functional.pad(x, (1, 0) * (x.ndim - 2), value=0.5)

    def pad_edges(self, x: Tensor) -> Tensor:
        return functional.pad(x, (1, 1) * (x.ndim - 2), mode="replicate")

    def nearest(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2, mode="nearest")

    def smooth(self, x: Tensor) -> Tensor:
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
        return functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)

    def turned(self, x: Tensor) -> Tensor:
        return x.flip(-1).roll(1, -1)

    def cropped(self, x: Tensor) -> Tensor:
        return x[..., 1:]


class InPlace(nn.Module):
    """Operations that change what they are given, which is their own."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.name, self.inner = name, inner

    def forward(self, x: Tensor) -> Tensor:
        made = self.inner(x)
        if self.name == "relu":
            return functional.relu_(made)
        if self.name == "add":
            made += x
            return made
        if self.name == "half":
            made[:, : made.shape[1] // 2] *= 2
            return made
        return made.mul_(0.5).add_(0.1).clamp_(-2, 2)


class Constants(nn.Module):
    """Buffers that forward reads: one number a channel, or one a position."""

    def __init__(self, channels: int, sizes: Sequence[int], of_positions: bool) -> None:
        super().__init__()
        shape = (1, 1, *sizes) if of_positions else (1, channels, *[1] * len(sizes))
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class OverChannels(nn.Module):
    """What every channel, or every position, computes of all channels after a scale of each."""

    def __init__(self, name: str, channels: int, rank: int) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.ones(channels))
        self.shape = (channels, *[1] * rank)

    @property
    def keeps_channels(self) -> bool:
        return self.name in ("softmax", "normalize", "sums", "neighbours")

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight.view(-1, *[1] * (x.ndim - 2))
        return getattr(self, self.name)(x)

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(1)

    def normalize(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1)

    def sums(self, x: Tensor) -> Tensor:
        return x.cumsum(1)

    def neighbours(self, x: Tensor) -> Tensor:
        return functional.local_response_norm(x, 3)

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def largest(self, x: Tensor) -> Tensor:
        return x.amax(1, keepdim=True)


class PositionGate(nn.Module):
    """CBAM's attention over positions: a convolution of what `over` computes of all channels."""

    def __init__(self, over: OverChannels, convolution: nn.Module) -> None:
        super().__init__()
        self.over, self.convolution = over, convolution

    def forward(self, x: Tensor) -> Tensor:
        return x * self.convolution(self.over(x)).sigmoid()


class ExciteByLinear(nn.Module):
    """Squeeze and excitation of linear layers, with views."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, 16, bias=False), nn.Linear(16, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, *sizes = x.shape
        gates = self.excite(self.squeeze(x.flatten(2).mean(2)).relu()).sigmoid()
        return x * gates.view(n, channels, *[1] * len(sizes))


class ExciteByNeighbours(nn.Module):
    """ECA: a convolution over the means of neighbouring channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(2).mean(2)
        return x * self.mix(mean.unsqueeze(1)).squeeze(1).sigmoid().view(*mean.shape, *[1] * (x.ndim - 2))


class Last(nn.Module):
    """Modules over vectors at every position, as ConvNeXt has them: channels move to the end and back."""

    def __init__(self, inner: nn.Module, scale: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.gamma = nn.Parameter(torch.ones(scale)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        made = self.inner(x.movedim(1, -1))
        made = made if self.gamma is None else self.gamma * made
        return x + made.movedim(-1, 1)


class AsTokens(nn.Module):
    """A module over tokens, of every position of a signal, image or volume."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        made = self.inner(x.flatten(2).transpose(1, 2))
        return made.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class Parted(nn.Module):
    """Halves of the channels, each through a module of its own; as Res2Net, the second also reads what the first made."""

    def __init__(self, one: nn.Module, other: nn.Module, cascades: bool) -> None:
        super().__init__()
        self.one, self.other, self.cascades = one, other, cascades

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, x.shape[1] // 2, 1)
        first = self.one(first)
        return torch.cat([first, self.other(second + first if self.cascades else second)], 1)


class Dense(nn.Module):
    """DenseNet's steps: each reads all that was made before it."""

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = torch.cat([x, step(x)], 1)
        return x


class Hourglass(nn.Module):
    """A step of a U-Net: down, through, up by a transposed convolution, and next to what came in."""

    def __init__(self, down: nn.Module, inner: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.inner, self.up = down, inner, up

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.inner(self.down(x)))], 1)


class Both(nn.Module):
    """Two modules whose results an operation joins."""

    def __init__(self, one: nn.Module, other: nn.Module, operation: str) -> None:
        super().__init__()
        self.one, self.other, self.operation = one, other, operation

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x), self.other(x)
        match self.operation:
            case "scaled":
                return torch.add(one, other, alpha=2)
            case "maximum":
                return torch.maximum(one, other)
            case "where":
                return torch.where(one > 0, other, one)
            case "lerp":
                return torch.lerp(one, other, 0.3)
            case "stacked":
                return torch.stack([one, other]).sum(0)
            case _:
                return one.sub(other).clamp(-3, 3) + one * other


class SharedNorm(nn.Module):
    """Two convolutions with one norm after each."""

    def __init__(self, one: nn.Module, other: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.norm = one, other, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.other(self.norm(self.one(x)).relu()))


class Pyramid(nn.Module):
    """One layer at two resolutions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        coarse = x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.ndim - 2)).expand_as(x)
        return self.layer(x) + self.layer(coarse)


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardised in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Focus(nn.Module):
    """Every second pixel of rows and columns, as channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


class ChannelAttention(nn.Module):
    """Attention among channels: scores are products over positions."""

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*(layer(x) for layer in (self.q, self.k, self.v)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.flatten(2) @ k.flatten(2).transpose(1, 2)
        made = scores.mul(q.flatten(2).shape[-1] ** -0.5).softmax(-1) @ v.flatten(2)
        return made.view(q.shape)
