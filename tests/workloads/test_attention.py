"""Attention written with explicit layers: the same numbers, and heads that can be taken out."""

import pytest
import torch
from slimfront.workloads.attention import SelfAttention, WindowAttention, explicit_attention
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def swin_transformer() -> nn.Module:
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5).eval()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize(
    ("model", "shape", "kind", "count"),
    [
        (vision_transformer(), (2, 3, 32, 32), SelfAttention, 2),
        (swin_transformer(), (2, 3, 64, 64), WindowAttention, 4),
        (swin_transformer(), (2, 3, 56, 40), WindowAttention, 4),  # padded to whole windows
        (encoder(), (7, 2, 16), SelfAttention, 2),  # tokens first
    ],
    ids=["vision transformer", "swin", "swin padded", "tokens first"],
)
def test_explicit_attention_computes_the_same(model, shape, kind, count):
    example = torch.randn(1, *shape[1:]) if shape[0] == 2 else torch.randn(*shape)
    explicit = explicit_attention(model, example)
    assert sum(type(module) is kind for module in explicit.modules()) == count
    inputs = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(explicit(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_a_model_without_attention_is_itself():
    model = nn.Sequential(nn.Linear(4, 4))
    assert explicit_attention(model, torch.zeros(1, 4)) is model


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask)[0]


class Weighted(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[1]


@pytest.mark.parametrize("kind", [Masked, Weighted])
def test_attention_of_which_more_is_used_is_left_alone(kind):
    model = kind().eval()
    assert explicit_attention(model, torch.randn(1, 5, 16)) is model


def test_heads_taken_out_leave_what_silenced_ones_would():
    torch.manual_seed(0)
    attention = SelfAttention(12, 3)
    tokens = torch.randn(2, 5, 12)
    silenced = SelfAttention(12, 3)
    silenced.load_state_dict(attention.state_dict())
    with torch.no_grad():
        silenced.out_proj.weight[:, 4:8] = 0  # what the second head says is not heard
        attention.keep_heads([0, 2])
        assert attention.in_proj.weight.shape == (24, 12)
        torch.testing.assert_close(attention(tokens, tokens, tokens)[0], silenced(tokens, tokens, tokens)[0])


def test_the_gradient_reaches_every_parameter_after_heads_went():
    model = explicit_attention(swin_transformer(), torch.randn(1, 3, 64, 64))
    for module in model.modules():
        if isinstance(module, WindowAttention) and module.num_heads == 4:
            module.keep_heads([1, 2])
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
