"""Heads of attention however it is spelt: found by what influences what, and removed so that the others compute what they did."""

import pytest
import torch
from slimfront.compression.pruning.proof import prove_groups
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.spaces.models.attention.find_heads import find_heads
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.policy import Policy
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, SIZE = 24, 6, 4
TOKENS = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Separate(nn.Module):
    """Queries, keys and values by layers of their own, as Hugging Face's encoders have them."""

    groups = HEADS

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, self.groups * SIZE) for _ in range(2))
        self.norm = nn.LayerNorm(SIZE) if norm else nn.Identity()

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, SIZE).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.norm(q), self.norm(k), v)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        return x + self.o(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Grouped(Separate):
    """Two keys and values for six queries (Ainslie et al. 2023, arXiv:2305.13245)."""

    groups = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        times = q.shape[1] // k.shape[1]
        return super().attend(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


class Shared(Grouped):
    """One key and value for all queries (Shazeer 2019, arXiv:1911.02150)."""

    groups = 1


class Einsum(Separate):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", scores, v)


class Fused(nn.Module):
    """One layer for all, and the number of heads written down, as in timm; with a bias for each head."""

    def __init__(self, interleaved: bool = False) -> None:
        super().__init__()
        self.num_heads, self.interleaved = HEADS, interleaved
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(25, HEADS))

    def forward(self, x: Tensor) -> Tensor:
        if self.interleaved:
            q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, -1, 3)).permute(4, 0, 2, 1, 3)
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias.view(5, 5, self.num_heads).permute(2, 0, 1)
        mixed = (q @ k.transpose(-2, -1) / SIZE**0.5 + bias).softmax(-1) @ v
        return x + self.proj(mixed.transpose(1, 2).flatten(2))


class WidthWrittenDown(Fused):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Model(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(WIDTH, WIDTH), attention, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self.first(x)).mean(1))


SPELLINGS = {
    "separate": (Separate, 6),
    "norms of queries and keys": (lambda: Separate(norm=True), 6),
    "grouped": (Grouped, 2),
    "einsum": (Einsum, 6),
    "fused": (Fused, 6),
    "fused, interleaved": (lambda: Fused(interleaved=True), 6),
}


@pytest.mark.parametrize(("make", "count"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_heads_are_found_and_removed_as_if_masked(make, count):
    torch.manual_seed(1)
    model = Model(make()).eval()
    groups, _ = find_channel_groups(model, TOKENS[:1])
    (heads,) = [group for group in groups if group.unit == "head"]
    assert (heads.name, heads.channels) == ("attention", count)
    assert prove_groups(model, TOKENS, groups) == (groups, {})
    slim = pruned_copy(model, TOKENS[:1], Policy(channels={"attention": 0.5}), groups)
    lost = WIDTH - (slim.attention.o if hasattr(slim.attention, "o") else slim.attention.proj).in_features
    assert lost == WIDTH - count // 2 * (WIDTH // count)
    assert slim(TOKENS).shape == (3, 3), "the model still runs, on any batch"


@pytest.mark.parametrize("attention", [Shared(), WidthWrittenDown()], ids=["one key and value", "width written down"])
def test_heads_that_cannot_go_are_left_with_a_reason(attention):
    model = Model(attention).eval()
    found, refused = find_heads(model, TOKENS[:1])
    assert not found
    assert [*refused] == ["attention"]
    assert "cannot be separated" in refused["attention"] or "test_attention_heads.py" in refused["attention"]


def test_the_model_is_left_as_it_was():
    model = Model(Fused()).eval()
    model.first.weight.requires_grad_(False)
    before = model(TOKENS)
    find_heads(model, TOKENS[:1])
    assert torch.equal(model(TOKENS), before)
    assert not model.first.weight.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
