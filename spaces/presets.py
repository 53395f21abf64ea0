"""Defaults that suit each family of networks, for keys that a study file leaves open.

| family | what is searched | why |
|---|---|---|
| cnn | channels and width; 8- or 4-bit weights, 8-bit activations | convolutions on integers are what runtimes are best at, and channels really go (Li et al. 2017, arXiv:1608.08710; Jacob et al. 2018, arXiv:1712.05877) |
| transformer | blocks, heads, MLP and embedding width; 8- or 4-bit weights; distillation | heads and blocks are redundant (Michel et al. 2019, arXiv:1905.10650; Men et al. 2024, arXiv:2403.03853), matrices multiply as fast as they are read (Frantar et al. 2023, arXiv:2210.17323) |
| recurrent | hidden units; 8- or 4-bit weights, activations on integers or not (weight-only), recurrent matrices on 8 bits; distillation | one step multiplies matrices by a vector: fewer units are fewer bytes to read at every step (Narang et al. 2017, arXiv:1704.05119) |

Embeddings' tables are searched on 8 and 4 bits in every family. Float stays a choice everywhere: at batch 1 small matrices can be slower on integers, which only measuring shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Family = Literal["cnn", "transformer", "recurrent"]


@dataclass(frozen=True)
class Preset:
    """Choices for a family, under the keys of a study file.

    Attributes:
        space: what is searched.
        recovery: how candidates are trained.
    """

    space: Mapping[str, Any]
    recovery: Mapping[str, Any]


def _preset(recovery: Mapping[str, Any], **space: Any) -> Preset:
    bits = {"granularity": "block", "weight_bits": (4, 8, 32), "activation_bits": (8, 32)}
    # reconstruction keeps the most before recovery; runtimes gain from four channels of sixteen over eight
    channels = {"channel_reduction": ("reconstruct",), "channel_multiple": (4,)}
    found = {"learning_rate": "auto", "channels_last": "auto", "mixed_precision": "auto"}
    tables = {"embedding_bits": (4, 8, 32)}  # of models that look words or users up, in every family too
    return Preset(MappingProxyType({**bits, **channels, **tables, **space}), MappingProxyType({**found, **recovery}))


PRESETS: Mapping[Family, Preset] = MappingProxyType({
    "cnn": _preset(
        {},
        channel_sparsity=(0.0, 0.25, 0.5),
        width=(1.0, 0.75, 0.5, 0.25),
        recovery_epochs=(0, 1, 10),
    ),
    "transformer": _preset(
        {"optimizer": "adamw"},
        channel_sparsity=(0.0, 0.5),
        width=(1.0, 0.75, 0.5),
        depth=(1.0, 0.75, 0.5),
        recovery_epochs=(0, 6),
    ),
    "recurrent": _preset(
        {"optimizer": "adamw"},
        channel_sparsity=(0.0, 0.25),
        width=(1.0, 0.75, 0.5, 0.375),
        recurrent_weights=("float32", "int8"),
        recovery_epochs=(0, 12),
    ),
})  # fmt: skip
"""Family -> what is searched unless the study file says otherwise, key by key."""


def preset_space(family: Family, bits: Mapping[str, Collection[Any]]) -> dict[str, Any]:
    """The space of a family's preset.

    Args:
        bits: key of the space -> bit-widths and other choices that the target takes; no others are offered.
    """
    space = PRESETS[family].space
    return {
        key: tuple(value for value in values if value in bits[key]) if key in bits else values
        for key, values in space.items()
    }
