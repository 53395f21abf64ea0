"""What can follow tokens, [tokens, width], and vectors, [width]: rules, each a function of a `Draw` and a shape."""

from __future__ import annotations

from collections.abc import Callable

import token_parts as further
from channel_rules import activation
from draws import ACTIVATIONS, WIDTHS, Draw, Made, Shape
from parts import Attention, Function, Gated, GroupedQuery, PackedGate, Recurrent, Residual, RootMeanSquare, Unrolled
from torch import nn


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


def further_attention(draw: Draw, shape: Shape) -> Made:
    tokens, width = shape
    heads = draw.of(2, 4)
    kind = draw.of("fused", "masked", "masked", "one", "latents")
    if kind == "latents":
        return further.FromLatents(width, heads, draw.often()), (3, width)
    if kind == "one":
        return Residual(further.OneSharedHead(width, heads, draw.often())), shape
    if kind == "masked":
        return Residual(further.MaskedAttention(width, heads, tokens, draw.of(*further.MASKED_KINDS))), shape
    order = draw.of("interleaved", "grouped", "chunked")
    shared = draw.of(heads, heads // 2, 1) if order == "grouped" else heads
    return Residual(further.FusedAttention(width, heads, shared, order)), shape


def encoder(draw: Draw, shape: Shape) -> Made:
    """torch's own layer of a transformer."""
    width, first = shape[-1], draw.often()
    return nn.TransformerEncoderLayer(width, draw.of(2, 4), draw.of(16, 32), batch_first=True, norm_first=first), shape


def further_gates(draw: Draw, shape: Shape) -> Made:
    width, hidden = shape[-1], draw.of(16, 32)
    if draw.often(0.3):
        experts = [nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(2)]
        return further.Mixture(nn.Linear(width, 2), [*experts]), shape
    if draw.often(0.2):
        return Residual(further.TiedPair(width, hidden)), shape
    return Residual(further.FurtherGates(width, hidden, draw.of(*further.GATES))), shape


def with_token(draw: Draw, shape: Shape) -> Made:
    return further.WithToken(shape[1], shape[0]), (shape[0] + 1, shape[1])


def further_norm(draw: Draw, shape: Shape) -> Made:
    width = shape[-1]
    return draw.of(
        lambda: nn.RMSNorm(width),
        lambda: nn.LayerNorm(width, bias=False),
        lambda: further.TurnedNorm(width),
    )(), shape


def further_recurrent(draw: Draw, shape: Shape) -> Made:
    tokens, width = shape
    if draw.often():
        return further.LastState(draw.of(nn.GRU, nn.RNN)(width, width)), shape
    if draw.often():
        return Recurrent(nn.LSTM(width, 24, proj_size=8, batch_first=True)), (tokens, 8)
    return further.CellByCell(draw.of(nn.GRUCell, nn.RNNCell)(width, 16)), (tokens, 16)


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
    further_attention, further_attention, encoder, further_gates, with_token, further_norm, further_recurrent,
)  # fmt: skip
VECTOR_RULES: tuple[Callable[[Draw, Shape], Made], ...] = (linear, linear, activation, vector_norm, perceptron)


def tokens(draw: Draw, shape: Shape, length: int) -> Made:
    steps: list[nn.Module] = []
    first, shape = linear(draw, shape)
    steps.append(first)
    for _ in range(length):
        step, shape = draw.of(*TOKEN_RULES)(draw, shape)
        steps.append(step)
    return nn.Sequential(*steps), shape
