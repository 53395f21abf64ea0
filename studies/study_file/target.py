"""The target of a study file."""

from __future__ import annotations

from ...core.errors import StudyFileError
from ...hardware_profiles.cards.target import Target, load_target
from .spec import StudySpec


def target_named(spec: StudySpec) -> Target:
    """The target that a study names, timed at the study's shapes where it has any.

    Raises:
        TargetError: no such card, or one that is wrong.
        StudyFileError: the card's latency table knows no shapes.
    """
    target = load_target(spec.target, spec.base_folder)
    if spec.shapes is None:
        return target
    if target.predict:
        raise StudyFileError(
            spec.file, "shapes", f"the latency table of {target.name} predicts one shape, the example's"
        )
    return Target.model_validate({**target.model_dump(), "shapes": [shape.model_dump() for shape in spec.shapes]})
