"""What a policy decides for one layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...core.errors import PolicyError
from ...core.validation import MAX_SENTENCE, shortened
from .checks import is_fraction, is_whole, require, rounded
from .operators import DENSE, Operator
from .sparsity import Sparsity, threshold_of

FULL_PRECISION = 32
GRID_BITS = 8
"""The most bits of an integer grid."""

BFLOAT16_BITS = 16
"""bfloat16 is the upper half of a float32, rounded to the nearest, of two to the even one (Kalamkar et al. 2019,
arXiv:1905.12322)."""

GROUPED_BITS = (4, 8)
"""The bits of weights that may share their scales by groups of inputs."""

GROUP_SIZES = (0, 32, 64, 128)
"""How many neighbouring inputs of a linear layer share a scale; 0 is all of them."""

WEIGHT_BITS = (2, 3, 4, 5, 6, 8, 16, 32)
ACTIVATION_BITS = (4, 6, 8, 16, 32)

EMBEDDING_BITS = (4, 8, FULL_PRECISION)
"""Of the table of an embedding: integers with one scale per row, two of 4 bits in a byte, of which only the rows that are looked up
become floats; or float32."""

UNIFORM = "uniform"
CODEBOOKS = (UNIFORM, "power_of_two", "k_means")
"""What values a weight of few bits may take; `compression.quantization.codebooks` has the handlers and the papers."""

STATIC = "static"
RANGES = (STATIC, "dynamic")
"""Whether the range of an activation's grid is calibrated, or computed at run time of each tensor (ONNX's
DynamicQuantizeLinear; torch.ao's dynamic quantization)."""


@dataclass(frozen=True)
class LayerPolicy:
    """What happens to one layer's weight and to the activations it reads.

    Attributes:
        weight_bits: one of `WEIGHT_BITS`; 32 leaves the weight alone, 16 rounds it to bfloat16.
        activation_bits: one of `ACTIVATION_BITS`, of the tensor the layer reads. 16 makes a layer whose weight has 16 bits one
            in bfloat16: bias, input and output are rounded too. No hardware multiplies bfloat16 with other numbers, and 32
            takes its place elsewhere.
        sparsity: fraction in [0, 1) of the weight set to zero, "2:4", or a threshold such as "<0.5std".
        operator: what replaces the layer, as `spaces.policies.operators.Operator.parse` reads it.
        codebook: one of `CODEBOOKS`; "uniform" is an integer grid. Above 8 bits there is none.
        activation_range: one of `RANGES`; "dynamic" is for linear layers with 8-bit activations and a weight on a grid, and
            "static" takes its place elsewhere.
        weight_group_size: one of `GROUP_SIZES`, of linear layers whose weight alone is on integers, of 4 or 8 bits; 0 takes its
            place elsewhere.
    """

    weight_bits: int = FULL_PRECISION
    activation_bits: int = FULL_PRECISION
    sparsity: Sparsity = 0.0
    operator: str = DENSE
    codebook: str = UNIFORM
    activation_range: str = STATIC
    weight_group_size: int = 0

    def __post_init__(self) -> None:
        for name, known in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
            bits = getattr(self, name)
            require(is_whole(bits) and bits in known, f"{name} must be one of {list(known)}, not {bits!r}")
        object.__setattr__(self, "sparsity", _canonical_sparsity(self.sparsity))
        try:
            Operator.parse(self.operator)
        except ValueError as error:
            raise PolicyError(shortened(f"operator: {error}", MAX_SENTENCE)) from error
        for name, names in (("codebook", CODEBOOKS), ("activation_range", RANGES)):
            chosen = getattr(self, name)
            require(chosen in names, f"{name} must be one of {', '.join(names)}, not {chosen!r}")
        size = self.weight_group_size
        require(
            is_whole(size) and size in GROUP_SIZES,
            f"weight_group_size must be one of {list(GROUP_SIZES)}, not {size!r}",
        )
        self._canonicalise()

    def _canonicalise(self) -> None:
        """Set to neutral what the bits leave nothing to decide, so that equal layers are equal objects."""
        if self.weight_bits > GRID_BITS:
            object.__setattr__(self, "codebook", UNIFORM)
        if self.activation_bits == BFLOAT16_BITS != self.weight_bits:
            object.__setattr__(self, "activation_bits", FULL_PRECISION)
        if self.activation_bits != GRID_BITS or not self.has_weight_grid:
            object.__setattr__(self, "activation_range", STATIC)
        if self.weight_bits not in GROUPED_BITS or self.has_codebook or self.activation_bits != FULL_PRECISION:
            object.__setattr__(self, "weight_group_size", 0)

    @property
    def has_codebook(self) -> bool:
        """Whether the weight is stored as codes of a few values, which no runtime here computes with."""
        return self.codebook != UNIFORM

    @property
    def has_weight_grid(self) -> bool:
        """Whether the weight lies on an integer grid."""
        return self.weight_bits <= GRID_BITS and not self.has_codebook

    @property
    def has_groups(self) -> bool:
        """Whether groups of inputs have scales of their own in the weight."""
        return self.weight_group_size > 0

    @property
    def has_activation_grid(self) -> bool:
        """Whether what the layer reads lies on a calibrated integer grid."""
        return self.activation_bits <= GRID_BITS and not self.is_dynamic

    @property
    def has_bfloat16_weight(self) -> bool:
        """Whether the weight is stored in bfloat16."""
        return self.weight_bits == BFLOAT16_BITS

    @property
    def is_bfloat16(self) -> bool:
        """Whether the layer reads, multiplies and writes bfloat16."""
        return self.weight_bits == self.activation_bits == BFLOAT16_BITS

    @property
    def is_dynamic(self) -> bool:
        """Whether what the layer reads lies on an integer grid whose range is computed at run time."""
        return self.activation_range != STATIC

    def changes(self) -> dict[str, Any]:
        """The decisions that differ from full precision and density."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def _canonical_sparsity(sparsity: object) -> Sparsity:
    if is_fraction(sparsity):
        return rounded(sparsity)
    named = isinstance(sparsity, str) and (sparsity == "2:4" or threshold_of(sparsity) is not None)
    require(named, f'sparsity must be a number in [0, 1), "2:4" or a threshold such as "<0.5std", not {sparsity!r}')
    return str(sparsity)
