"""A compression policy: one point of a space, frozen, canonical, versioned JSON, hashed.

The JSON (schema 1) holds only what differs from the uncompressed model::

    {"schema": 1, "width": 0.5, "channels": {"blocks.0.conv1": 0.25},
     "layers": {"fc": {"weight_bits": 4, "activation_bits": 8, "sparsity": "2:4"}},
     "recovery": {"epochs": 2, "learning_rate": 0.01, "temperature": 4.0, "alpha": 0.7},
     "pruning": {"criterion": "taylor", "steps": 4}, "removed_blocks": ["blocks.3"]}
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from ...core.documents import json_document
from ...core.errors import DocumentError, PolicyError
from ...core.validation import MAX_SENTENCE, shortened
from .operators import DENSE, Operator
from .pruning import Pruning
from .quantization_scheme import Scheme

SCHEMA = 1
FULL_PRECISION = 32
GRID_BITS = 8
"""The most bits of an integer grid."""

BFLOAT16_BITS = 16
"""bfloat16 is the upper half of a float32, rounded to the nearest, of two to the even one (Kalamkar et al. 2019,
arXiv:1905.12322)."""

DECIMALS = 6
"""Fractions and settings are rounded to so many decimals: what differs less is the same policy."""

WEIGHT_BITS = (2, 3, 4, 5, 6, 8, 16, 32)
ACTIVATION_BITS = (4, 6, 8, 16, 32)

UNIFORM = "uniform"
CODEBOOKS = (UNIFORM, "power_of_two", "k_means")
"""What values a weight of few bits may take; `compression.codebooks` has the handlers and the papers."""

STATIC = "static"
RANGES = (STATIC, "dynamic")
"""Whether the range of an activation's grid is calibrated, or computed at run time of each tensor (ONNX's
DynamicQuantizeLinear; torch.ao's dynamic quantization)."""

Sparsity = float | str
"""Fraction of a layer's weights set to zero; "2:4": two of every four along the input dimension; or "<0.5std": all whose
magnitude is below so many standard deviations of the layer's weights (Han et al. 2015, arXiv:1506.02626)."""

_THRESHOLD = re.compile(r"<(\d+(?:\.\d+)?)std")


def threshold_of(sparsity: Sparsity) -> float | None:
    """Standard deviations below which weights are zero, where `sparsity` is such a threshold."""
    form = _THRESHOLD.fullmatch(sparsity) if isinstance(sparsity, str) else None
    return float(form[1]) if form and float(form[1]) > 0 else None


def zeroed_share(sparsity: Sparsity) -> float:
    """Fraction of weights set to zero: as it says, one half of "2:4", and of a threshold what lies below it in a normal
    distribution around zero, which weights only resemble."""
    threshold = threshold_of(sparsity)
    if threshold is not None:
        return math.erf(threshold / math.sqrt(2))
    return 0.5 if isinstance(sparsity, str) else sparsity


def _rounded(value: float) -> float:
    return round(float(value), DECIMALS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_fraction(value: object) -> bool:
    """In [0, 1) also once rounded."""
    return _is_number(value) and 0 <= _rounded(value) < 1  # type: ignore[arg-type]


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise PolicyError(shortened(problem, MAX_SENTENCE))


@dataclass(frozen=True)
class LayerPolicy:
    """What happens to one layer's weight and to the activations it reads.

    Attributes:
        weight_bits: one of `WEIGHT_BITS`; 32 leaves the weight alone, 16 rounds it to bfloat16.
        activation_bits: one of `ACTIVATION_BITS`, of the tensor the layer reads. 16 makes a layer whose weight has 16 bits one
            in bfloat16: bias, input and output are rounded too. No hardware multiplies bfloat16 with other numbers, and 32
            takes its place elsewhere.
        sparsity: fraction in [0, 1) of the weight set to zero, "2:4", or a threshold such as "<0.5std".
        operator: what stands in the layer's place, as `operators.Operator.parse` reads it.
        codebook: one of `CODEBOOKS`; "uniform" is an integer grid. Above 8 bits there is none.
        activation_range: one of `RANGES`; "dynamic" is for linear layers with 8-bit activations and a weight on a grid, and
            "static" takes its place elsewhere.
    """

    weight_bits: int = FULL_PRECISION
    activation_bits: int = FULL_PRECISION
    sparsity: Sparsity = 0.0
    operator: str = DENSE
    codebook: str = UNIFORM
    activation_range: str = STATIC

    def __post_init__(self) -> None:
        _require(
            _is_whole(self.weight_bits) and self.weight_bits in WEIGHT_BITS,
            f"weight_bits must be one of {list(WEIGHT_BITS)}, not {self.weight_bits!r}",
        )
        _require(
            _is_whole(self.activation_bits) and self.activation_bits in ACTIVATION_BITS,
            f"activation_bits must be one of {list(ACTIVATION_BITS)}, not {self.activation_bits!r}",
        )
        if self.sparsity != "2:4" and threshold_of(self.sparsity) is None:
            _require(
                _is_fraction(self.sparsity),
                f'sparsity must be a number in [0, 1), "2:4" or a threshold such as "<0.5std", not {self.sparsity!r}',
            )
            object.__setattr__(self, "sparsity", _rounded(self.sparsity))  # type: ignore[arg-type]
        try:
            Operator.parse(self.operator)
        except ValueError as error:
            raise PolicyError(shortened(f"operator: {error}", MAX_SENTENCE)) from error
        _require(self.codebook in CODEBOOKS, f"codebook must be one of {', '.join(CODEBOOKS)}, not {self.codebook!r}")
        if self.weight_bits > GRID_BITS:
            object.__setattr__(self, "codebook", UNIFORM)
        if self.activation_bits == BFLOAT16_BITS != self.weight_bits:
            object.__setattr__(self, "activation_bits", FULL_PRECISION)
        _require(
            self.activation_range in RANGES,
            f"activation_range must be one of {', '.join(RANGES)}, not {self.activation_range!r}",
        )
        if self.activation_bits != GRID_BITS or not self.has_weight_grid:
            object.__setattr__(self, "activation_range", STATIC)

    @property
    def has_codebook(self) -> bool:
        """Whether the weight is stored as codes of a few values, which no runtime here computes with."""
        return self.codebook != UNIFORM

    @property
    def has_weight_grid(self) -> bool:
        """Whether the weight lies on an integer grid."""
        return self.weight_bits <= GRID_BITS and not self.has_codebook

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


RecoveryStep = Literal["prune", "quantize", "train", "equalize", "adaround", "correct_bias"]
POST_TRAINING: tuple[RecoveryStep, ...] = ("equalize", "adaround", "correct_bias")
"""Steps that read the calibration split without its labels; `compression.post_training` has the handlers and the papers."""

RECOVERY_CHOICES: dict[str, tuple[str, ...]] = {
    "steps": ("prune", "quantize", "train", *POST_TRAINING),
    "data": ("train", "unlabelled", "synthetic"),
    "schedule": ("one_cycle", "cosine", "constant"),
    "optimizer": ("sgd", "adamw"),
}
"""What a setting of recovery is one of, or what its parts are."""


@dataclass(frozen=True)
class Recovery:
    """Training around pruning and quantization, with distillation from the uncompressed model (Hinton et al. 2015,
    arXiv:1503.02531).

    Attributes:
        epochs: passes over the training split; 0 is no recovery, and the other fields then mean nothing.
        learning_rate: peak of a one-cycle schedule.
        temperature: of the softened targets.
        alpha: weight of the distillation term in [0, 1]; 1 - alpha goes to the workload's own loss.
        steps: in order; the "train" steps share the epochs. "prune" is there once. From "quantize" on, which is there once
            or not at all, training is aware of the grids; without it quantization follows training. Those of
            `POST_TRAINING` work without epochs too.
        distiller: name of what is imitated, see `compression.distil`.
        teachers: workloads whose models teach beside the uncompressed one, their probabilities averaged.
        data: "train", "unlabelled" (the training inputs, their labels never read) or "synthetic" (no data at all).
        mutual: a second student learns beside this one, and each from the other.
        schedule: of the learning rate, "one_cycle", "cosine" or "constant".
        optimizer: "sgd" with Nesterov momentum 0.9, or "adamw" (Loshchilov & Hutter 2019, arXiv:1711.05101), which Transformers
            and recurrent networks learn faster with.
        patience: training ends after so many epochs without a lower loss on a tenth of the training data held out of it,
            with the best weights; 0 trains to the end.
        mixed_precision: train in bfloat16 where the machine computes in it.
    """

    epochs: int = 0
    learning_rate: float = 0.01
    temperature: float = 4.0
    alpha: float = 0.7
    steps: tuple[RecoveryStep, ...] = ("prune", "train")
    distiller: str = "soft"
    teachers: tuple[str, ...] = ()
    data: Literal["train", "unlabelled", "synthetic"] = "train"
    mutual: bool = False
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    patience: int = 0
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        self._check_pipeline()
        _require(
            _is_whole(self.epochs) and self.epochs >= 0,
            f"recovery epochs must be a whole number >= 0, not {self.epochs!r}",
        )
        for name in ("learning_rate", "temperature", "alpha"):
            value = getattr(self, name)
            _require(_is_number(value), f"recovery {name} must be a number, not {value!r}")
            object.__setattr__(self, name, _rounded(value))
        _require(self.learning_rate > 0, f"recovery learning_rate must be > 0, not {self.learning_rate!r}")
        _require(self.temperature > 0, f"recovery temperature must be > 0, not {self.temperature!r}")
        _require(0 <= self.alpha <= 1, f"recovery alpha must lie in [0, 1], not {self.alpha!r}")

    def _check_pipeline(self) -> None:
        for name in ("steps", "teachers"):
            value = getattr(self, name)
            _require(isinstance(value, (list, tuple)), f"recovery {name} must be a list, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name, known in RECOVERY_CHOICES.items():
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                _require(part in known, f"recovery {name}: {part!r} is not one of {', '.join(known)}")
        trainings = 0 if self.is_calibrated else 1
        bounds = {"prune": (1, 1), "quantize": (0, 1), "train": (trainings, len(self.steps))}
        for step, (least, most) in {**bounds, **dict.fromkeys(POST_TRAINING, (0, 1))}.items():
            count = self.steps.count(step)
            _require(least <= count <= most, f"recovery steps: {step!r} is there {count} times in {list(self.steps)}")
        _require(
            all(isinstance(name, str) for name in (self.distiller, *self.teachers)), "recovery: names must be text"
        )
        for name in ("mutual", "mixed_precision"):
            _require(isinstance(getattr(self, name), bool), f"recovery {name} must be true or false")
        _require(_is_whole(self.patience) and self.patience >= 0, "recovery patience must be a whole number >= 0")

    @property
    def is_calibrated(self) -> bool:
        """Whether a step reads the calibration split."""
        return any(step in POST_TRAINING for step in self.steps)

    @property
    def changes_weights(self) -> bool:
        """Whether there is anything to do after pruning."""
        return self.epochs > 0 or self.is_calibrated

    def reduced(self, quantized: bool) -> Recovery:
        """These settings without what decides nothing: training without epochs, grids where no layer is `quantized`."""
        steps = tuple(step for step in self.steps if quantized or step not in POST_TRAINING)
        if self.epochs and "train" in steps:
            return replace(self, steps=steps)
        calibrated: tuple[RecoveryStep, ...] = tuple(step for step in steps if step == "prune" or step in POST_TRAINING)
        return Recovery(steps=calibrated) if len(calibrated) > 1 else Recovery()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what came with later versions only where it says anything."""
        always = ("epochs", "learning_rate", "temperature", "alpha")
        values = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in always or getattr(self, f.name) != f.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class Policy:
    """One compression policy, canonical: equal decisions are equal objects with equal digests.

    Attributes:
        width: student width in (0, 1], the fraction of every channel group kept.
        channels: channel group -> fraction in [0, 1) of what `width` left that is removed too.
        layers: layer -> `LayerPolicy`; a layer not named keeps full precision and density.
        recovery: fine-tuning after pruning.
        pruning: by which criterion and in how many steps channels and weights go.
        removed_blocks: paths of whole blocks that are gone, sorted.
        scheme: how the grids of quantized layers are chosen.

    Raises:
        PolicyError: a decision is out of range.
    """

    width: float = 1.0
    channels: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)
    recovery: Recovery = Recovery()
    pruning: Pruning = field(default_factory=Pruning)
    removed_blocks: tuple[str, ...] = ()
    scheme: Scheme = field(default_factory=Scheme)

    def __post_init__(self) -> None:
        _require(
            _is_number(self.width) and 0 < _rounded(self.width) <= 1, f"width must lie in (0, 1], not {self.width!r}"
        )
        for group, fraction in self.channels.items():
            _require(_is_fraction(fraction), f"channel sparsity of {group} must lie in [0, 1), not {fraction!r}")
        self._canonicalise()

    def _canonicalise(self) -> None:
        """Drop decisions that decide nothing, so that equal policies hash equal."""
        channels = {group: _rounded(f) for group, f in sorted(self.channels.items()) if _rounded(f)}
        layers = {name: layer for name, layer in sorted(self.layers.items()) if layer != LayerPolicy()}
        object.__setattr__(self, "width", _rounded(self.width))
        object.__setattr__(self, "channels", MappingProxyType(channels))
        object.__setattr__(self, "layers", MappingProxyType(layers))
        quantized = any(layer.has_weight_grid or layer.has_activation_grid for layer in layers.values())
        object.__setattr__(self, "recovery", self.recovery.reduced(quantized))
        object.__setattr__(self, "removed_blocks", tuple(sorted(set(self.removed_blocks))))
        reduces = self.width < 1 or bool(channels)
        fractions = any(layer.sparsity and not isinstance(layer.sparsity, str) for layer in layers.values())
        sparse = any(layer.sparsity for layer in layers.values())
        pruning = self.pruning.reduced_to(
            anything=reduces or sparse, channels=reduces, weights=fractions, trained=self.recovery.epochs > 0
        )
        object.__setattr__(self, "pruning", pruning)
        if not quantized:
            object.__setattr__(self, "scheme", Scheme())
        _require(
            self.pruning.steps == 1 or self.recovery.steps[0] == "prune",
            "pruning in steps has to be the first of recovery's steps",
        )

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self):
        # MappingProxyType cannot be pickled; the JSON is the whole policy.
        return Policy.from_json, (self.to_json(),)

    def layer(self, name: str) -> LayerPolicy:
        """The decisions for one layer; full precision and density where nothing is said."""
        return self.layers.get(name, LayerPolicy())

    def kept_fraction(self, group: str) -> float:
        """Fraction in (0, 1] of a channel group's channels that width and channel sparsity together keep."""
        return self.width * (1 - self.channels.get(group, 0.0))

    @property
    def is_uncompressed(self) -> bool:
        """Whether the policy changes nothing at all."""
        return self == Policy()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space, defaults left out."""
        document: dict[str, Any] = {"schema": SCHEMA}
        if self.width != 1.0:
            document["width"] = self.width
        if self.channels:
            document["channels"] = dict(self.channels)
        if self.layers:
            document["layers"] = {name: _changes(layer) for name, layer in self.layers.items()}
        if self.recovery != Recovery():
            document["recovery"] = self.recovery.to_dict()
        if self.pruning != Pruning():
            document["pruning"] = self.pruning.changes()
        if self.removed_blocks:
            document["removed_blocks"] = list(self.removed_blocks)
        if self.scheme != Scheme():
            document["scheme"] = self.scheme.changes()
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """The policy a JSON text describes.

        Raises:
            PolicyError: not JSON, an unknown schema or key, or a decision out of range.
        """
        try:
            document = json_document(text)
        except DocumentError as error:
            raise PolicyError(f"policy {error}") from error
        _require(isinstance(document, dict), "policy must be a JSON object")
        schema = document.pop("schema", None)
        _require(schema == SCHEMA, f"policy schema must be {SCHEMA}, not {schema!r}")
        _known_keys(document, cls, "policy")
        layers = document.pop("layers", {})
        recovery = document.pop("recovery", {})
        pruning = document.pop("pruning", {})
        blocks = document.pop("removed_blocks", [])
        _require(
            isinstance(blocks, list) and all(isinstance(name, str) for name in blocks),
            f"removed_blocks must be a list of module paths, not {blocks!r}",
        )
        for key, part in (("channels", document.get("channels", {})), ("layers", layers)):
            _require(isinstance(part, dict), f"{key} must be a JSON object, not {part!r}")
        for name, layer in layers.items():
            _known_keys(layer, LayerPolicy, f"layer {name}")
        _known_keys(recovery, Recovery, "recovery")
        _known_keys(pruning, Pruning, "pruning")
        scheme = document.pop("scheme", {})
        _known_keys(scheme, Scheme, "scheme")
        try:
            document["scheme"] = Scheme(**scheme)
        except ValueError as error:
            raise PolicyError(shortened(f"scheme: {error}", MAX_SENTENCE)) from error
        return cls(
            layers={name: LayerPolicy(**layer) for name, layer in layers.items()},
            recovery=Recovery(**recovery),
            pruning=Pruning(**pruning),
            removed_blocks=tuple(blocks),
            **document,
        )

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _changes(layer: LayerPolicy) -> dict[str, Any]:
    return {f.name: getattr(layer, f.name) for f in fields(layer) if getattr(layer, f.name) != f.default}


def _known_keys(document: Any, kind: type, where: str) -> None:
    _require(isinstance(document, dict), f"{where} must be a JSON object, not {document!r}")
    known = {f.name for f in fields(kind)}
    for key in document:
        _require(key in known, f"{where}: unknown key {key!r}; known are {sorted(known)}")
