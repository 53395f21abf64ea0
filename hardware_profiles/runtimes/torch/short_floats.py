"""Layers of an exported graph that compute in floats of 16 bits; what stands between them stays in float32, as under `torch.autocast`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ....spaces.models.exported_graph import constant
from ....spaces.policies.float_precision import BFLOAT16, FLOAT16

DTYPES = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
"""Float precision of a policy -> the type that layers compute in; float32 for any other."""

REPORTED = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The type of what a layer reads -> what sessions call it."""


class ShortFloats:
    """Has layers of `exported` compute in `dtype`, each weight stored in it once.

    Args:
        store: makes a constant of a name and values; returns the node that reads it.
    """

    def __init__(self, exported: fx.GraphModule, dtype: torch.dtype, store: Callable[[str, Tensor], fx.Node]) -> None:
        self._exported, self._dtype, self._store = exported, dtype, store
        self._stored: dict[tuple[str, int], str] = {}

    def convert(self, name: str, node: fx.Node) -> None:
        """Have one run of the layer `name` read, multiply and write floats of 16 bits."""
        for position, value in enumerate(node.args[1:3], start=1):
            if isinstance(value, fx.Node):
                with node.graph.inserting_before(node):
                    node.update_arg(position, self._operand(name, position, value))
        convert_ends(node, self._dtype)

    def _operand(self, name: str, position: int, value: fx.Node) -> fx.Node:
        if value.op != "get_attr":  # a weight that is dequantized at each run
            return _to(value, self._dtype)
        if (name, position) not in self._stored:
            values = torch.from_numpy(constant(self._exported, value)).to(self._dtype)
            made = self._store(f"{name}_{position}_{REPORTED[self._dtype]}", values)
            self._stored[name, position] = str(made.target)
            return made
        return value.graph.get_attr(self._stored[name, position])


def convert_ends(node: fx.Node, dtype: torch.dtype) -> None:
    """Convert what a layer reads to `dtype`, and what it makes to float32."""
    with node.graph.inserting_before(node):
        node.update_arg(0, _to(node.args[0], dtype))
    with node.graph.inserting_after(node):
        made = _to(node, torch.float32)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def _to(value: Any, dtype: torch.dtype) -> fx.Node:
    """`value`, a node, in `dtype`, made where its graph inserts."""
    return value.graph.call_function(torch.ops.aten.to.dtype, (value, dtype))
