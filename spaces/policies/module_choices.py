"""Fields of a policy that hold one choice for each of some modules, by the modules' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from .checks import require

Choice: TypeAlias = int | float | str
"""One value of a knob."""

METADATA = "choices"
"""The key that such a field's metadata hold its `ModuleChoices` under."""


@dataclass(frozen=True)
class ModuleChoices:
    """What may be chosen for a module, and what is left out of a policy because it changes nothing."""

    choices: tuple[Choice, ...]
    neutral: Choice

    def decided(self, name: str, value: Any) -> Mapping[str, Choice]:
        """The canonical value of the field called `name`: in the order of modules' names, without neutral choices.

        Raises:
            PolicyError: not an object, or a choice is none of `choices`.
        """
        require(isinstance(value, Mapping), f"{name} must be a JSON object, not {value!r}")
        for module, choice in value.items():
            known = any(type(choice) is type(other) and choice == other for other in self.choices)
            require(known, f"{name} {module} must be one of {list(self.choices)}, not {choice!r}")
        return MappingProxyType({module: choice for module, choice in sorted(value.items()) if choice != self.neutral})


def module_choices(choices: tuple[Choice, ...], neutral: Choice) -> Any:
    """A field of `Policy`: module -> one of `choices`; `neutral` where a module is not named."""
    return field(default_factory=dict, metadata={METADATA: ModuleChoices(choices, neutral)})
