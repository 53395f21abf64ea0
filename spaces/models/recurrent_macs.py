"""Multiply-adds of recurrent layers, which fvcore does not count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from fvcore.nn.jit_handles import get_shape

RECURRENT_OPERATIONS = ("aten::gru", "aten::lstm", "aten::rnn_tanh", "aten::rnn_relu")
"""What recurrent layers are in a traced graph."""


def macs_of_recurrence(inputs: Sequence[Any], _outputs: Sequence[Any]) -> Counter[str]:
    """Multiply-adds of one of `RECURRENT_OPERATIONS`: every element of its matrices once for each step of each sample.

    As elsewhere, element-wise operations are not counted.

    Args:
        inputs: the operation's; first the sequence [.., features], and a list of all parameters among the others.
    """
    read = get_shape(inputs[0]) or []
    elements = [math.prod(shape) for shape in _shapes(inputs) if len(shape) == 2]
    return Counter({"recurrent layer": math.prod(read[:-1]) * sum(elements)})


def _shapes(inputs: Sequence[Any]) -> Iterator[list[int]]:
    """Shapes of the tensors that stand in lists: the parameters, and of an LSTM the first states, which have three dimensions."""
    for value in inputs:
        if value.node().kind() == "prim::ListConstruct":
            yield from filter(None, map(get_shape, value.node().inputs()))
