"""Attention written with explicit layers: the same numbers, and heads that can be taken out."""

import pytest
import torch
from slimfront.workloads.attention import CrossAttention, SelfAttention, WindowAttention, explicit_attention
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


TOKENS = 5


class Asked(nn.Module):
    """Maps [n, 5, 16] to the same by attention that is asked as `options` say; a padding mask hides another key of each sample."""

    def __init__(self, options: dict[str, object], pads: bool = False, inputs: int = 1, **made: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, **{"batch_first": True, **made})
        for name, weight in self.attention.named_parameters():
            if "bias" in name:
                nn.init.normal_(weight)
        self.key, self.value = (nn.Linear(16, made.get(name, 16)) for name in ("kdim", "vdim"))
        self.options, self.pads, self.inputs = options, pads, inputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.eye(TOKENS)[(torch.arange(len(x)) + 1) % TOKENS] > 0
        x = x if self.attention.batch_first else x.transpose(0, 1)
        key, value = (x, x) if self.inputs == 1 else (self.key(x), x if self.inputs == 2 else self.value(x))
        options = {**self.options, **({"key_padding_mask": hidden} if self.pads else {})}
        made = self.attention(query=x, key=key, value=value, **options)[0]
        return made if self.attention.batch_first else made.transpose(0, 1)


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
ADDED = nn.Transformer.generate_square_subsequent_mask(TOKENS)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (Asked({}, pads=True), SelfAttention),
        (Asked({"attn_mask": CAUSAL, "need_weights": False}), SelfAttention),
        (Asked({"attn_mask": ADDED, "is_causal": True, "need_weights": False}), SelfAttention),
        (Asked({"attn_mask": CAUSAL}, pads=True, bias=False), SelfAttention),
        (Asked({}, pads=True, batch_first=False), SelfAttention),
        (Asked({}, inputs=2), CrossAttention),
        (Asked({"attn_mask": ADDED}, pads=True, inputs=3, kdim=8, vdim=12), CrossAttention),
        (Asked({}, pads=True, inputs=3, kdim=8, bias=False, batch_first=False), CrossAttention),
    ],
    ids=["padding", "causal", "added", "both", "tokens first", "two inputs", "three inputs", "three tokens first"],
)
def test_masks_and_other_inputs_are_kept(model, kind):
    explicit = explicit_attention(model.eval(), torch.randn(1, TOKENS, 16))
    assert type(explicit.attention) is kind
    inputs = torch.randn(3, TOKENS, 16)
    with torch.no_grad():
        torch.testing.assert_close(explicit(inputs), model(inputs), rtol=1e-4, atol=1e-5)


class Weighted(Asked):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[1]


HEADS = CAUSAL.expand(2, TOKENS, TOKENS)


@pytest.mark.parametrize(
    "model",
    [Weighted({}), Asked({"attn_mask": HEADS}), Asked({}, add_bias_kv=True), Asked({}, add_zero_attn=True)],
    ids=["weights read", "a mask for each head", "own key", "zero key"],
)
def test_attention_of_which_more_is_used_is_left_alone(model):
    assert explicit_attention(model.eval(), torch.randn(1, TOKENS, 16)) is model


class Beside(nn.Module):
    """An attention whose weights are read, and one of which only the outputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.plain = Weighted({}), Asked({})

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x) @ self.plain(x)


def test_one_attention_that_is_left_alone_leaves_no_other():
    explicit = explicit_attention(Beside().eval(), torch.randn(1, TOKENS, 16))
    assert type(explicit.plain.attention) is SelfAttention
    assert type(explicit.read.attention) is nn.MultiheadAttention


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
