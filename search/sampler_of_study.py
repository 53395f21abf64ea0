"""The sampler a study file names, told what the space and the target's costs are."""

from __future__ import annotations

from ..spaces.space import NEUTRAL, Space
from .coordinates import Coordinate, coordinate


def space_coordinates(space: Space) -> list[Coordinate]:
    """The knobs of a space as the policy sampler sees them, in their order."""
    return [coordinate(knob.name, knob.kind, knob.choices, NEUTRAL[knob.kind]) for knob in space.knobs]
