"""A policy while its decisions are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .float_precision import FLOAT32, FloatPrecision
from .layer_policy import LayerPolicy
from .module_choices import Choice
from .policy import Policy
from .pruning import Pruning
from .quantization_scheme import Scheme
from .recovery import Recovery


@dataclass
class PolicyDraft:
    """The decisions of a policy, which kinds of knobs write one by one.

    Attributes:
        recovery, scheme: settings that no knob decides; `epochs` replaces the former's.
        layers: layer -> field of `LayerPolicy` -> choice.
        pruning: field of `Pruning` -> choice.
        module_choices: field of `Policy` -> module -> choice.
        extensions, float_precision: as in `Policy`.
    """

    recovery: Recovery = field(default_factory=Recovery)
    scheme: Scheme = field(default_factory=Scheme)
    epochs: float = 0
    width: float = 1.0
    channels: dict[str, float] = field(default_factory=dict)
    layers: defaultdict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    pruning: dict[str, Any] = field(default_factory=dict)
    removed_blocks: set[str] = field(default_factory=set)
    extensions: defaultdict[str, dict[str, Choice]] = field(default_factory=lambda: defaultdict(dict))
    float_precision: FloatPrecision = FLOAT32
    module_choices: defaultdict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))

    @classmethod
    def of(cls, policy: Policy) -> PolicyDraft:
        """A draft that holds the decisions of `policy`."""
        return cls(
            policy.recovery,
            policy.scheme,
            policy.recovery.epochs,
            policy.width,
            dict(policy.channels),
            _nested({name: layer.changes() for name, layer in policy.layers.items()}),
            policy.pruning.changes(),
            set(policy.removed_blocks),
            _nested(policy.extensions),
            policy.float_precision,
            _nested(policy.module_choices),
        )

    def policy(self) -> Policy:
        """The policy of these decisions.

        Raises:
            PolicyError: a decision is out of range.
        """
        return Policy(
            self.width,
            self.channels,
            {name: LayerPolicy(**decisions) for name, decisions in self.layers.items()},
            replace(self.recovery, epochs=self.epochs),
            Pruning(**self.pruning),
            tuple(self.removed_blocks),
            self.scheme,
            self.extensions,
            self.float_precision,
            **self.module_choices,
        )


def _nested(decisions: Mapping[str, Mapping[str, Any]]) -> defaultdict[str, dict[str, Any]]:
    return defaultdict(dict, {name: dict(inner) for name, inner in decisions.items()})
