"""What a study offers for every kind of knob."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..core.errors import PolicyError
from .knobs.kind import Granularity, KnobKind, Subject
from .knobs.registry import KNOB_KINDS
from .policies.policy import Choice


class SpaceChoices(Mapping[str, tuple[Choice, ...]]):
    """Study key of each kind of knob -> the choices offered; a single neutral choice switches a technique off.

    Args:
        granularity: which layers share one knob.
        keep: `fnmatch` patterns of layers left at full precision and density, their channels never removed.
        offered: study key -> choices, of the kinds that are not off.

    Raises:
        PolicyError: a key that no kind of knob has.
    """

    def __init__(
        self, granularity: Granularity = "layer", keep: Sequence[str] = (), **offered: Sequence[Choice]
    ) -> None:
        self.granularity: Granularity = granularity
        self.keep = tuple(keep)
        kinds = {kind.key: kind for kind in KNOB_KINDS.values()}
        if unknown := sorted(set(offered) - set(kinds)):
            raise PolicyError(f"no kind of knob has the key {unknown[0]!r}; known are {', '.join(sorted(kinds))}")
        self._offered = {
            key: tuple(map(kind.canonical, offered[key])) if key in offered else (kind.neutral,)
            for key, kind in kinds.items()
        }

    def __getitem__(self, key: str) -> tuple[Choice, ...]:
        return self._offered[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offered)

    def __len__(self) -> int:
        return len(self._offered)

    def without_quantization(self) -> SpaceChoices:
        """These choices with everything in full precision."""
        full = {kind.key: (kind.neutral,) for kind in KNOB_KINDS.values() if kind.is_quantizing}
        return SpaceChoices(self.granularity, self.keep, **{**self._offered, **full})

    def narrowed(self, key: str, choices: Sequence[Choice]) -> SpaceChoices:
        """These choices with only `choices` under a key."""
        return SpaceChoices(self.granularity, self.keep, **{**self._offered, key: choices})

    def searched(self) -> list[KnobKind]:
        """The kinds of knobs that are not off."""
        return [kind for kind in KNOB_KINDS.values() if not kind.is_off(self._offered[kind.key])]

    def decides_on(self, *subjects: Subject) -> bool:
        """Whether anything about one of these subjects is searched."""
        return any(kind.subject in subjects for kind in self.searched())


def keys_of_targets() -> list[str]:
    """Study keys that a target's card has too, for the choices it takes."""
    return [kind.key for kind in KNOB_KINDS.values() if kind.is_listed_by_targets]
