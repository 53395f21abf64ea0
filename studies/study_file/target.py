"""The target of a study file."""

from __future__ import annotations

from ...hardware_profiles.cards.target import Target, load_target
from .spec import StudySpec


def target_named(spec: StudySpec) -> Target:
    """The target that a study names, timed at the study's shapes where it has any.

    Raises:
        TargetError: no such card, or one that is wrong.
    """
    target = load_target(spec.target, spec.base_folder)
    if spec.shapes is None:
        return target
    return Target.model_validate({**target.model_dump(), "shapes": [shape.model_dump() for shape in spec.shapes]})
