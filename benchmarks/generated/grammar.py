"""Small random networks from a grammar: what layers of channels, tokens and vectors can follow one another.

A rule takes a `Draw` and the shape of what it reads, and returns a module and the shape of what that makes. Shapes are of one sample:
[channels, positions ...] of signals, images and volumes, [tokens, width] of tokens, [width] of vectors. The same chance makes the
same network; hypothesis's own `Random` shrinks it.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from channel_rules import activation, chain
from draws import Draw, Shape
from parts import Fold, Function
from token_rules import linear, tokens
from torch import Tensor, nn
from whole_networks import Heads, Text, Towers


def network(chance: random.Random) -> tuple[nn.Module, Any]:
    """A network in evaluation mode, its weights at random, and inputs of it: a tensor [6, ...], or several in a tuple or dictionary."""
    draw = Draw(chance)
    form = draw.of("one", "one", "one", "one", "one", "heads", "heads", "towers", "text")
    model, inputs = {"one": _plain, "heads": _heads, "towers": _towers, "text": _text}[form](draw)
    randomise(model, chance.randrange(2**31))
    return model.eval(), inputs


def _plain(draw: Draw) -> tuple[nn.Module, Tensor]:
    body, width, given = _body(draw)
    return nn.Sequential(body, *_head(draw, width)), _random(draw, given)


def _heads(draw: Draw) -> tuple[nn.Module, Tensor]:
    body, width, given = _body(draw)
    heads = (nn.Sequential(*_head(draw, width)) for _ in range(2))
    return Heads(body, *heads, draw.of("tuple", "dict", "nested", "features", "class")), _random(draw, given)


def _towers(draw: Draw) -> tuple[nn.Module, Any]:
    joins = draw.of("cat", "product", "distance")
    one, width, given = _body(draw)
    if joins != "cat" and draw.often():
        model = Towers(one, one, nn.Sequential(*_head(draw, width)), joins)
        return model, (_random(draw, given), _random(draw, given))
    other, second, also = _body(draw)
    if joins != "cat":
        other, second = nn.Sequential(other, nn.Linear(second, width)), 0
    model = Towers(one, other, nn.Sequential(*_head(draw, width + second)), joins)
    inputs = _random(draw, given), _random(draw, also)
    return model, draw.of(inputs, dict(zip(("left", "right"), inputs, strict=True)))


def _text(draw: Draw) -> tuple[nn.Module, Any]:
    width, heads, words, tokens = draw.of(16, 32), draw.of(2, 4), 20, 5
    encoder = nn.TransformerEncoderLayer(width, heads, draw.of(16, 48), batch_first=True, norm_first=draw.often())
    model = Text(nn.Embedding(words, width), encoder, nn.Sequential(*_head(draw, width)))
    ids = torch.randint(words, (6, tokens), generator=torch.Generator().manual_seed(draw.chance.randrange(2**31)))
    mask = torch.arange(tokens) < torch.tensor([[5], [4], [3], [2], [5], [1]])
    return model, draw.of((ids, mask), {"ids": ids, "mask": mask})


def _body(draw: Draw) -> tuple[nn.Module, int, Shape]:
    """A network of vectors, their width, and the shape of one sample that it reads."""
    kind = draw.of("images", "images", "images", "signals", "volumes", "tokens", "tokens")
    given: Shape = {"images": (3, 6, 6), "signals": (2, 12), "volumes": (2, 4, 4, 4), "tokens": (5, 12)}[kind]
    if kind == "tokens":
        body, shape = tokens(draw, given, draw.of(1, 2, 3))
        head = Function(draw.of("mean_tokens", "first_token", "flatten"))
        width = shape[-1] * (shape[0] if head.name == "flatten" else 1)
    else:
        body, shape = chain(draw, given, draw.of(2, 3, 4, 5))
        head, width = _reduced(draw, shape)
    return nn.Sequential(body, head), width, given


def _head(draw: Draw, width: int) -> list[nn.Module]:
    steps: list[nn.Module] = []
    if draw.often(0.4):
        hidden, (width,) = linear(draw, (width,))
        steps += [hidden, activation(draw, (width,))[0]]
    return [*steps, nn.Linear(width, 5)]


def _random(draw: Draw, shape: Shape) -> Tensor:
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(draw.chance.randrange(2**31)))


def _reduced(draw: Draw, shape: Shape) -> tuple[nn.Module, int]:
    """Something that makes a vector of channels and positions."""
    channels, size = shape[0], math.prod(shape[1:])
    name = draw.of("mean", "mean", "max", "flatten", "flatten_last")
    if name.startswith("flatten") and channels * size > 1024:
        name = "mean"
    return Fold(name), channels * size if name.startswith("flatten") else channels


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
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
