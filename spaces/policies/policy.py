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
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from ...core.documents import json_document
from ...core.errors import DocumentError, PolicyError
from ...core.validation import MAX_SENTENCE, shortened
from .checks import is_fraction, is_number, require, rounded
from .float_precision import FLOAT32, FLOAT_PRECISIONS, FloatPrecision
from .layer_policy import EMBEDDING_BITS, FULL_PRECISION, LayerPolicy
from .module_choices import METADATA, Choice, ModuleChoices, module_choices
from .pruning import Pruning
from .quantization_scheme import Scheme
from .recovery import Recovery
from .recurrent_weights import RECURRENT_WEIGHTS

SCHEMA = 1


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
        extensions: kind of knob that slimfront does not know itself -> layer, group or block, "" for the whole model -> choice,
            where it is not neutral.
        float_precision: one of `FLOAT_PRECISIONS`, of all that stays in float; "default" is what the runtime takes by itself.
        recurrent: recurrent layer -> "int8" or "dynamic", of all its matrices; float32 where it is not named.
        embeddings: embedding -> 8 or 4, the bits of its table's rows; 32 where it is not named.

    Raises:
        PolicyError: a decision is out of range.
    """

    width: float = 1.0
    channels: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)
    recovery: Recovery = field(default_factory=Recovery)
    pruning: Pruning = field(default_factory=Pruning)
    removed_blocks: tuple[str, ...] = ()
    scheme: Scheme = field(default_factory=Scheme)
    extensions: Mapping[str, Mapping[str, Choice]] = field(default_factory=dict)
    float_precision: FloatPrecision = FLOAT32
    recurrent: Mapping[str, str] = module_choices(RECURRENT_WEIGHTS, FLOAT32)
    embeddings: Mapping[str, int] = module_choices(EMBEDDING_BITS, FULL_PRECISION)

    def __post_init__(self) -> None:
        require(is_number(self.width) and 0 < rounded(self.width) <= 1, f"width must lie in (0, 1], not {self.width!r}")
        for group, fraction in self.channels.items():
            require(is_fraction(fraction), f"channel sparsity of {group} must lie in [0, 1), not {fraction!r}")
        known = self.float_precision in FLOAT_PRECISIONS
        require(known, f"float_precision must be one of {', '.join(FLOAT_PRECISIONS)}, not {self.float_precision!r}")
        for kind, decided in self.extensions.items():
            require(isinstance(decided, Mapping), f"{kind} of extensions must be a JSON object, not {decided!r}")
            for choice in decided.values():
                require(
                    isinstance(choice, str) or is_number(choice), f"{kind} cannot be {choice!r}: no number and no text"
                )
        self._canonicalise()

    def _canonicalise(self) -> None:
        """Drop decisions that decide nothing, so that equal policies hash equal."""
        channels = {group: rounded(f) for group, f in sorted(self.channels.items()) if rounded(f)}
        layers = {name: layer for name, layer in sorted(self.layers.items()) if layer != LayerPolicy()}
        quantized = any(layer.has_weight_grid or layer.has_activation_grid for layer in layers.values())
        self._canonicalise_module_choices()
        object.__setattr__(self, "width", rounded(self.width))
        object.__setattr__(self, "channels", MappingProxyType(channels))
        object.__setattr__(self, "layers", MappingProxyType(layers))
        object.__setattr__(self, "recovery", self.recovery.reduced(quantized or bool(self.recurrent)))
        object.__setattr__(self, "removed_blocks", tuple(sorted(set(self.removed_blocks))))
        object.__setattr__(self, "pruning", self._effective_pruning())
        object.__setattr__(self, "extensions", self._decided_extensions())
        grouped = any(layer.has_groups for layer in layers.values())
        object.__setattr__(self, "scheme", self.scheme.reduced(quantized, grouped))
        require(
            self.pruning.steps == 1 or self.recovery.steps[0] == "prune",
            "pruning in steps has to be the first of recovery's steps",
        )

    def _canonicalise_module_choices(self) -> None:
        for name, offered in MODULE_CHOICES.items():
            object.__setattr__(self, name, offered.decided(name, getattr(self, name)))

    def _decided_extensions(self) -> Mapping[str, Mapping[str, Choice]]:
        decided = {kind: choices for kind, choices in sorted(self.extensions.items()) if choices}
        return MappingProxyType({
            kind: MappingProxyType(dict(sorted(choices.items()))) for kind, choices in decided.items()
        })  # fmt: skip

    def _effective_pruning(self) -> Pruning:
        reduces = self.width < 1 or bool(self.channels)
        sparsities = [layer.sparsity for layer in self.layers.values() if layer.sparsity]
        return self.pruning.reduced_to(
            anything=reduces or bool(sparsities),
            channels=reduces,
            weights=any(not isinstance(sparsity, str) for sparsity in sparsities),
            trained=self.recovery.epochs > 0,
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
    def module_choices(self) -> dict[str, Mapping[str, Choice]]:
        """The fields that hold one choice per module, by their names in `MODULE_CHOICES`."""
        return {name: getattr(self, name) for name in MODULE_CHOICES}

    @property
    def is_uncompressed(self) -> bool:
        """Whether the policy changes nothing at all."""
        return self == Policy()

    @property
    def is_free(self) -> bool:
        """Whether the policy leaves the model as it is, in whatever precision its floats are computed."""
        return replace(self, float_precision=FLOAT32).is_uncompressed

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space, defaults left out."""
        parts: dict[str, Any] = {
            "channels": dict(self.channels),
            "layers": {name: layer.changes() for name, layer in self.layers.items()},
            "recovery": self.recovery.to_dict() if self.recovery != Recovery() else {},
            "pruning": self.pruning.changes(),
            "removed_blocks": list(self.removed_blocks),
            "scheme": self.scheme.changes(),
            "extensions": {kind: dict(decided) for kind, decided in self.extensions.items()},
            **{name: dict(decided) for name, decided in self.module_choices.items()},
        }
        document = {"schema": SCHEMA, **{key: part for key, part in parts.items() if part}}
        if self.width != 1.0:
            document["width"] = self.width
        if self.float_precision != FLOAT32:
            document["float_precision"] = self.float_precision
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
        require(isinstance(document, dict), "policy must be a JSON object")
        schema = document.pop("schema", None)
        require(schema == SCHEMA, f"policy schema must be {SCHEMA}, not {schema!r}")
        _known_keys(document, cls, "policy")
        layers = document.pop("layers", {})
        recovery = document.pop("recovery", {})
        pruning = document.pop("pruning", {})
        blocks = document.pop("removed_blocks", [])
        require(
            isinstance(blocks, list) and all(isinstance(name, str) for name in blocks),
            f"removed_blocks must be a list of module paths, not {blocks!r}",
        )
        objects = {key: document.get(key, {}) for key in ("channels", "extensions")}
        for key, part in (*objects.items(), ("layers", layers)):
            require(isinstance(part, dict), f"{key} must be a JSON object, not {part!r}")
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


MODULE_CHOICES: Mapping[str, ModuleChoices] = {
    f.name: f.metadata[METADATA] for f in fields(Policy) if METADATA in f.metadata
}
"""Field of `Policy` -> what it may hold for each module that it names."""


def _known_keys(document: Any, kind: type, where: str) -> None:
    require(isinstance(document, dict), f"{where} must be a JSON object, not {document!r}")
    known = {f.name for f in fields(kind)}
    for key in document:
        require(key in known, f"{where}: unknown key {key!r}; known are {sorted(known)}")
