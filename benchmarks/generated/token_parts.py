"""Attention of further spellings, gates, and recurrent layers over tokens, [n, tokens, width], that generated networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FusedAttention(nn.Module):
    """Queries, keys and values of one layer, packed in several orders; `shared` heads of keys and values."""

    def __init__(self, width: int, heads: int, shared: int, order: str) -> None:
        super().__init__()
        self.heads, self.shared, self.each, self.order = heads, shared, width // heads, order
        self.qkv = nn.Linear(width, (heads + 2 * shared) * self.each)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        if self.order == "interleaved":  # as GPT-NeoX, heads before the three
            q, k, v = self.qkv(x).view(n, tokens, self.heads, -1).transpose(1, 2).chunk(3, -1)
        elif self.order == "grouped":  # as Phi-3 and Falcon, by sizes
            own, other = self.heads * self.each, self.shared * self.each
            q, k, v = (
                part.view(n, tokens, -1, self.each).transpose(1, 2)
                for part in self.qkv(x).split([own, other, other], -1)
            )
        else:  # as nanoGPT
            q, k, v = (part.view(n, tokens, self.heads, self.each).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        is_grouped = self.order == "grouped" and self.shared < self.heads
        made = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
        return self.out(made.transpose(1, 2).reshape(n, tokens, width))


class MaskedAttention(nn.Module):
    """Attention spelt out, with what may change its scores: a causal mask, a bias for each head, slopes, norms, rotation."""

    def __init__(self, width: int, heads: int, tokens: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kind, each = heads, kind, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.hidden: Tensor
        self.register_buffer("hidden", torch.ones(tokens, tokens, dtype=torch.bool).triu(1))
        if kind == "bias":
            self.bias = nn.Parameter(torch.zeros(heads, tokens, tokens))
        if kind == "slopes":
            self.slopes: Tensor
            self.register_buffer("slopes", torch.arange(1.0, heads + 1).view(-1, 1, 1))
        if kind == "norms":
            self.q_norm, self.k_norm = nn.LayerNorm(each), nn.RMSNorm(each)
        if kind == "rotary":
            self.cosine = nn.Parameter(torch.ones(tokens, each), requires_grad=False)
        if kind == "talking":
            self.talk = nn.Linear(heads, heads, bias=False)
        if kind == "gated":
            self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.kind == "norms":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.kind == "rotary":
            q, k = self._rotated(q), self._rotated(k)
        if self.kind == "linear":
            q, k = functional.elu(q) + 1, functional.elu(k) + 1
            made = q @ (k.transpose(-2, -1) @ v) / tokens
        else:
            made = self._weights(q @ k.mT * q.shape[-1] ** -0.5) @ v
        made = made.transpose(1, 2).reshape(n, tokens, width)
        return self.out(made * self.gate(x).sigmoid() if self.kind == "gated" else made)

    def _weights(self, scores: Tensor) -> Tensor:
        if self.kind == "causal":
            scores = scores.masked_fill(self.hidden, float("-inf"))
        if self.kind == "bias":
            scores = scores + self.bias
        if self.kind == "slopes":
            scores = scores - self.slopes * self.hidden
        if self.kind == "talking":
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return scores.softmax(-1)

    def _rotated(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * self.cosine + torch.cat([-other, one], -1)


MASKED_KINDS = ("causal", "bias", "slopes", "norms", "rotary", "talking", "gated", "linear")


class OneSharedHead(nn.Module):
    """Multi-query attention: all heads share one of keys and values."""

    def __init__(self, width: int, heads: int, expands: bool) -> None:
        super().__init__()
        self.heads, self.expands = heads, expands
        self.q, self.kv, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * (width // heads)),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q = self.q(x).view(n, tokens, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).chunk(2, -1)
        if self.expands:
            k, v = k.expand(-1, self.heads, -1, -1), v.expand(-1, self.heads, -1, -1)
        scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class FromLatents(nn.Module):
    """Attention of a few trained queries over all tokens, and theirs over them."""

    def __init__(self, width: int, heads: int, first: bool) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, 3, width))
        self.read = nn.MultiheadAttention(width, heads, batch_first=not first)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        if self.first:
            turned = x.transpose(0, 1)
            return self.read(latents.transpose(0, 1), turned, turned, need_weights=False)[0].transpose(0, 1)
        return self.read(latents, x, x, need_weights=True)[0]


class FurtherGates(nn.Module):
    """Gated linear units whose halves one layer makes, in more spellings."""

    def __init__(self, width: int, hidden: int, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.up(x)
        if self.spelling == "glu":
            return self.down(functional.glu(made))
        if self.spelling == "interleaved":
            return self.down(functional.gelu(made[..., ::2]) * made[..., 1::2])
        if self.spelling == "slices":
            half = made.shape[-1] // 2
            return self.down(made[..., :half].sigmoid() * made[..., half:])
        one, other = made.unflatten(-1, (2, -1)).unbind(-2)
        return self.down(functional.silu(one) * other)


GATES = ("glu", "interleaved", "slices", "unbound")


class Mixture(nn.Module):
    """Experts, weighted by a softmax."""

    def __init__(self, router: nn.Module, experts: list[nn.Module]) -> None:
        super().__init__()
        self.router, self.experts = router, nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        return sum((shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts)), torch.zeros(()))


class TiedPair(nn.Module):
    """An encoder whose transpose decodes."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.encode = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.encode(x).relu(), self.encode.weight.t())


class WithToken(nn.Module):
    """A trained token in front, and a trained place for each."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.token, self.places = (
            nn.Parameter(torch.zeros(1, 1, width)),
            nn.Parameter(torch.zeros(1, tokens + 1, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places


class TurnedNorm(nn.BatchNorm1d):
    """A batch-norm over the features of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class CellByCell(nn.Module):
    """A cell that runs once for each token."""

    def __init__(self, cell: nn.GRUCell | nn.RNNCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, made = None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            made.append(state)
        return torch.stack(made, 1)


class LastState(nn.Module):
    """The last state of a recurrent layer that reads the tokens first, added to every token."""

    def __init__(self, layer: nn.GRU | nn.RNN) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.layer(x.transpose(0, 1))
        return x + states[-1].unsqueeze(1)
