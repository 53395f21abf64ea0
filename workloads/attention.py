"""Attention with its projections as layers of their own, and heads that can be pruned.

`nn.MultiheadAttention` and torchvision's window attention read the weights of their projections without calling them as
layers, so that nothing there could be quantized or pruned. `explicit_attention` rewrites them with the same numbers.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.batch import Batch, largest_difference

if TYPE_CHECKING:
    from torchvision.models.swin_transformer import ShiftedWindowAttention

TOLERANCE = 1e-3
"""The largest difference, relative to the largest output, between the two forms of a model that rounding may cause."""


ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
"""The first arguments of `nn.MultiheadAttention`, in order."""


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2), called as `nn.MultiheadAttention` is.

    Attributes:
        in_proj: queries, keys and values in one, [.., width] -> [.., 3 x num_heads x head_width].
        out_proj: [.., num_heads x head_width] -> [.., width].
        batch_first: inputs are [batch, tokens, width], else [tokens, batch, width].
    """

    in_proj_bias = None  # makes `nn.TransformerEncoderLayer` call this module instead of its own kernel

    def __init__(
        self, width: int, num_heads: int, bias: bool = True, dropout: float = 0.0, batch_first: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.dropout, self.batch_first = dropout, batch_first
        self.in_proj = nn.Linear(width, 3 * width, bias)
        self.out_proj = nn.Linear(width, width, bias)

    @classmethod
    def of(cls, original: nn.MultiheadAttention) -> SelfAttention:
        """The same attention as `original`, which reads one input and has one width."""
        biased = original.in_proj_bias is not None
        own = cls(original.embed_dim, original.num_heads, biased, original.dropout, original.batch_first)
        own.in_proj.weight, own.in_proj.bias = original.in_proj_weight, original.in_proj_bias  # type: ignore[assignment]
        own.out_proj.weight, own.out_proj.bias = original.out_proj.weight, original.out_proj.bias
        return own.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """The attended `query`, shape as it is, and no weights; `is_causal` says something of `attn_mask`, which is read itself.

        Raises:
            NotImplementedError: asked for the attention of one input on another.
        """
        if key is not value or (key is not None and key is not query):
            raise NotImplementedError("attention was traced on one input, and only that was kept")
        tokens = query if self.batch_first else query.transpose(0, 1)
        attended = self.attend(tokens, added_to_scores(attn_mask, key_padding_mask, tokens))
        return (attended if self.batch_first else attended.transpose(0, 1)), None

    def attend(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """[batch, tokens, width] -> the same; `bias`, shape [.., num_heads or 1, tokens, tokens], is added to the scores."""
        projected = self.in_proj(tokens).unflatten(-1, (3, self.num_heads, self.head_width))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Remove every head but `kept`, with its queries, keys, values and its columns of `out_proj`."""
        heads = torch.arange(self.num_heads * self.head_width).view(self.num_heads, self.head_width)
        columns = heads[list(kept)].flatten()
        rows = torch.cat([columns + part * self.num_heads * self.head_width for part in range(3)])
        self.in_proj.weight = nn.Parameter(self.in_proj.weight.detach()[rows])
        if self.in_proj.bias is not None:
            self.in_proj.bias = nn.Parameter(self.in_proj.bias.detach()[rows])
        self.out_proj.weight = nn.Parameter(self.out_proj.weight.detach()[:, columns])
        self.in_proj.out_features, self.out_proj.in_features = len(rows), len(columns)
        self.num_heads = len(kept)


class CrossAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are made of inputs of their own, called as `nn.MultiheadAttention` is.

    Attributes:
        q_proj, k_proj, v_proj: [.., width of the input] -> [.., num_heads x head_width].
        out_proj: [.., num_heads x head_width] -> [.., width].
        batch_first: inputs are [batch, tokens, width], else [tokens, batch, width].
    """

    in_proj_bias = None  # makes `nn.TransformerEncoderLayer` call this module instead of its own kernel

    def __init__(self, original: nn.MultiheadAttention) -> None:
        """The same attention as `original`."""
        super().__init__()
        self.num_heads, self.head_width = original.num_heads, original.head_dim
        self.dropout, self.batch_first = original.dropout, original.batch_first
        one = original._qkv_same_embed_dim
        separate = (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
        weights = original.in_proj_weight.chunk(3) if one else separate
        biases = [None] * 3 if original.in_proj_bias is None else original.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            linear_of(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.out_proj = linear_of(original.out_proj.weight, original.out_proj.bias)
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """The attended `query`, shape as it is, and no weights; `is_causal` says something of `attn_mask`, which is read itself."""
        inputs = (query, key, value)
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in inputs)
        made = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        heads = [each.unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2) for each in made]
        bias, dropout = added_to_scores(attn_mask, key_padding_mask, query), self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(*heads, attn_mask=bias, dropout_p=dropout)
        attended = self.out_proj(attended.transpose(1, 2).flatten(2))
        return (attended if self.batch_first else attended.transpose(0, 1)), None


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with a copy of these numbers, in evaluation mode."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer.eval()


def added_to_scores(attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Both masks of an attention as what is added to its scores: minus infinity where a truth hides a key; None without masks.

    Args:
        attn_mask: shape [queries, keys].
        key_padding_mask: shape [batch, keys].
    """
    biases = []
    if attn_mask is not None:
        biases.append(_as_bias(attn_mask, like))
    if key_padding_mask is not None:
        biases.append(_as_bias(key_padding_mask, like)[:, None, None, :])
    return sum(biases[1:], biases[0]) if biases else None


def _as_bias(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


class WindowAttention(SelfAttention):
    """Attention within shifted windows (Liu et al. 2021, arXiv:2103.14030, section 3.2), [n, h, w, width] -> the same."""

    def __init__(self, original: ShiftedWindowAttention) -> None:
        """The same attention as torchvision's `original`, with layers named as elsewhere."""
        super().__init__(original.qkv.in_features, original.num_heads, dropout=original.attention_dropout)
        self.in_proj, self.out_proj = original.qkv, original.proj
        self.out_dropout = nn.Dropout(original.dropout)
        self.window, self.shift = list(original.window_size), list(original.shift_size)
        self.relative_position_bias_table = original.relative_position_bias_table
        self.register_buffer("relative_position_index", cast("Tensor", original.relative_position_index))
        self.train(original.training)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        batch, height, width, channels = images.shape
        padding = [-size % window for size, window in zip((height, width), self.window, strict=True)]
        padded = functional.pad(images, (0, 0, 0, padding[1], 0, padding[0]))
        rows, columns = padded.shape[1:3]
        # A window as large as the image has nothing to shift into.
        shift = [0 if w >= size else s for w, s, size in zip(self.window, self.shift, (rows, columns), strict=True)]
        if any(shift):
            padded = padded.roll((-shift[0], -shift[1]), (1, 2))
        attended = self.attend(self._windows(padded), self._bias(rows, columns, shift, batch))
        counts = rows // self.window[0], columns // self.window[1]
        attended = self.out_dropout(attended).view(batch, *counts, *self.window, channels)
        attended = attended.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, channels)
        if any(shift):
            attended = attended.roll((shift[0], shift[1]), (1, 2))
        return attended[:, :height, :width, :].contiguous()

    def keep_heads(self, kept: Sequence[int]) -> None:
        super().keep_heads(kept)
        table = self.relative_position_bias_table.detach()
        self.relative_position_bias_table = nn.Parameter(table[:, list(kept)])

    def _windows(self, images: Tensor) -> Tensor:
        """[n, h, w, width] -> [n x windows, tokens of a window, width]."""
        batch, rows, columns, channels = images.shape
        down, across = self.window
        windows = images.view(batch, rows // down, down, columns // across, across, channels)
        return windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, down * across, channels)

    def _bias(self, rows: int, columns: int, shift: Sequence[int], batch: int) -> Tensor:
        """What is added to the scores: the relative positions, and -100 between tokens that only the shift made neighbours."""
        tokens = self.window[0] * self.window[1]
        bias = self.relative_position_bias_table[cast("Tensor", self.relative_position_index)]
        bias = bias.view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)  # [1, heads, tokens, tokens]
        if not any(shift):
            return bias
        regions = bias.new_zeros((1, rows, columns, 1))
        edges = [((0, -w), (-w, -s), (-s, None)) for w, s in zip(self.window, shift, strict=True)]
        for number, (top, left) in enumerate((top, left) for top in edges[0] for left in edges[1]):
            regions[:, top[0] : top[1], left[0] : left[1]] = number
        regions = self._windows(regions).squeeze(-1)
        apart = (regions.unsqueeze(1) != regions.unsqueeze(2)).to(bias.dtype) * -100.0
        return bias + apart.unsqueeze(1).repeat(batch, 1, 1, 1)


def explicit_attention(model: nn.Module, example_input: Batch) -> nn.Module:
    """A copy of `model` with its attention as `SelfAttention` and `CrossAttention`; the model itself where none can be written so.

    Attention whose weights are read, with a mask for each head, or with keys of its own is left as it is.

    Args:
        example_input: shape [1, ...]; shows how each attention is called, and that the copy computes the same.
    """
    forms: dict[str, Any] = dict(_forms(model, example_input))
    if swin := sys.modules.get(
        "torchvision.models.swin_transformer"
    ):  # a model of it has imported it, which takes seconds
        forms |= {name: WindowAttention for name, m in model.named_modules() if type(m) is swin.ShiftedWindowAttention}
    if not forms:
        return model
    explicit = _rewritten(model, forms)
    if _computes_the_same(model, explicit, example_input):
        return explicit
    # The weights of some may be read: those alone are left.
    alone = {name: form for name, form in forms.items() if _is_same_with(model, {name: form}, example_input)}
    return _rewritten(model, alone) if alone and _is_same_with(model, alone, example_input) else model


def _rewritten(model: nn.Module, forms: Mapping[str, Any]) -> nn.Module:
    """A copy of a model with some modules in other forms."""
    copied = copy.deepcopy(model)
    for name, form in forms.items():
        copied.set_submodule(name, form(copied.get_submodule(name)))
    return copied


def _is_same_with(model: nn.Module, forms: Mapping[str, Any], example_input: Batch) -> bool:
    return _computes_the_same(model, _rewritten(model, forms), example_input)


@torch.no_grad()
def _forms(model: nn.Module, example_input: Batch) -> dict[str, Any]:
    """`nn.MultiheadAttention` modules that can be written with explicit layers, by path, and what makes the form of each."""
    calls: dict[str, list[dict[str, Any]]] = {}

    def watch(name: str, module: nn.MultiheadAttention):
        def hook(_module: nn.Module, args: tuple, options: dict) -> None:
            calls.setdefault(name, []).append(dict(zip(ARGUMENTS, args, strict=False)) | options)

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    attentions = {name: m for name, m in model.named_modules() if type(m) is nn.MultiheadAttention}
    if not attentions:
        return {}
    hooks = [watch(name, module) for name, module in attentions.items()]
    training = model.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would not call the modules at all
    try:
        model.eval()(example_input)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)
        for hook in hooks:
            hook.remove()
    found = {name: _form(attentions[name], own) for name, own in calls.items()}
    return {name: form for name, form in found.items() if form is not None}


def _form(module: nn.MultiheadAttention, calls: Iterable[Mapping[str, Any]]) -> Any:
    """What makes the explicit form of an attention that is called like this; None where none computes the same."""
    one_input = module._qkv_same_embed_dim
    for call in calls:
        query, mask = call["query"], call.get("attn_mask")
        if query.ndim != 3 or (mask is not None and mask.ndim != 2):
            return None
        one_input = one_input and query is call["key"] is call["value"]
    if module.bias_k is not None or module.add_zero_attn:
        return None
    return SelfAttention.of if one_input else CrossAttention


@torch.no_grad()
def _computes_the_same(model: nn.Module, explicit: nn.Module, example_input: Batch) -> bool:
    with suppress(NotImplementedError, TypeError, AttributeError):  # the model uses more of its attention than was kept
        training = model.training
        outputs, own = model.eval()(example_input), explicit.eval()(example_input)
        model.train(training)
        explicit.train(training)
        return largest_difference(outputs, own) <= TOLERANCE
    return False
