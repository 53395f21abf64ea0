"""Networks of several inputs or several outputs around bodies of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Answer:
    """What a network with an output of a class of its own returns."""

    scores: Tensor
    boxes: Tensor | None = None


class Heads(nn.Module):
    """Several heads on one body; their results in a tuple, a dictionary, nested, or in a class of their own."""

    def __init__(self, body: nn.Module, one: nn.Module, other: nn.Module, form: str) -> None:
        super().__init__()
        self.body, self.one, self.other, self.form = body, one, other, form

    def forward(self, x: Tensor) -> Any:
        seen = self.body(x)
        scores, boxes = self.one(seen), self.other(seen)
        match self.form:
            case "tuple":
                return scores, boxes
            case "dict":
                return {"scores": scores, "boxes": boxes}
            case "nested":
                return {"scores": scores, "more": [boxes, {"largest": boxes.argmax(-1)}]}
            case "features":
                return scores, seen
            case _:
                return Answer(scores, boxes)


class Towers(nn.Module):
    """Two inputs, each through a body of its own, or both through the same."""

    def __init__(self, one: nn.Module, other: nn.Module, head: nn.Module, joins: str) -> None:
        super().__init__()
        self.one, self.other, self.head, self.joins = one, other, head, joins

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        first, second = self.one(left), self.other(right)
        if self.joins == "cat":
            return self.head(torch.cat([first, second], -1))
        return self.head(first * second if self.joins == "product" else (first - second).abs())


class Text(nn.Module):
    """Token ids and a mask of those that count, pooled by their mean."""

    def __init__(self, embedding: nn.Embedding, encoder: nn.TransformerEncoderLayer, head: nn.Module) -> None:
        super().__init__()
        self.embedding, self.encoder, self.head = embedding, encoder, head

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        seen = self.encoder(self.embedding(ids), src_key_padding_mask=~mask)
        counted = mask.unsqueeze(-1).to(seen.dtype)
        return {"logits": self.head((seen * counted).sum(1) / counted.sum(1).clamp_min(1))}
