"""What speed-ups are counted from, in words, for the terminal and for cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.measurement import Measurement
from ..spaces.policies.float_precision import FLOAT32
from .store.records import FreeDeployment, QuietMoment, ReferenceRecord, StudyRecord
from .wording import full_text, short_text, spread_text


def reference_name(study: StudyRecord) -> str:
    """What a study's reference is called; of a study of before there was a choice, the precision that all had."""
    return study.reference.name if study.reference is not None else FLOAT32


def quality_text(study: StudyRecord) -> str:
    """What a study's accuracy is."""
    return f"accuracy is {study.quality.words}; accuracy_drop is how much of it is lost"


def has_other_precision(study: StudyRecord) -> bool:
    """Whether a study's speed-ups are counted from a precision other than float32."""
    return study.reference is not None and study.reference.over_float32 is not None


def reference_text(study: StudyRecord) -> str:
    """What a study's speed-ups are counted from, and why."""
    record = study.reference
    if record is None:
        return (
            f"the uncompressed model in {FLOAT32}, as of every study that began before free deployments were measured"
        )
    return f"{record.name}{_over(record)}: {record.reason}"


def reference_lines(record: ReferenceRecord, is_new: bool) -> list[str]:
    """A reference for the screen: what it is and why, and the free deployments that it was chosen from."""
    kept = "" if is_new else ", as the study began"
    lines = [f"speed-ups are over {record.name}{_over(record)}{kept}: {record.reason}"]
    return lines + [f"  {deployment_text(each)}" for each in record.deployments if is_new and _is_shown(each)]


def deployment_text(deployment: FreeDeployment) -> str:
    """A free deployment and its figures."""
    name = f"{deployment.computes_in}, the runtime's default" if deployment.is_default else deployment.computes_in
    if deployment.problem is not None:
        return f"{name}: {deployment.problem}"
    speedup, accuracy, drop = (
        _figure(deployment.figures[key]) for key in ("speedup_float32", "accuracy", "accuracy_drop")
    )
    return f"{name}: {speedup} as fast as {FLOAT32}, accuracy {accuracy}, drop {drop}"


def moments_text(before: Measurement, now: Measurement) -> str | None:
    """A sentence where two moments of the reference differ by more than their intervals; None where they agree."""
    if not differ(before, now):
        return None
    quiet, busy = sorted((before, now), key=lambda latency: latency.value)
    return (
        f"the reference took {_milliseconds(busy)} at one moment and {_milliseconds(quiet)} at a quieter one; "
        "milliseconds of all trials are in the scale of the latter"
    )


def remark_of_moments(moments: Sequence[QuietMoment]) -> str | None:
    """`moments_text` of the busiest and the quietest moment of a study."""
    if not moments:
        return None
    ordered = sorted((each.latency for each in moments), key=lambda latency: latency.value)
    return moments_text(ordered[-1], ordered[0])


def remark_text(study: StudyRecord) -> str | None:
    """All that is to be known of how a study is searched; None where there is nothing."""
    remarks = [study.remark, remark_of_moments(study.reference.moments) if study.reference is not None else None]
    return "; ".join(filter(None, remarks)) or None


def differ(one: Measurement, other: Measurement) -> bool:
    """Whether two latencies differ by more than their intervals."""
    return one.high < other.low or other.high < one.low


def reference_document(study: StudyRecord) -> dict[str, Any]:
    """A study's reference as plain JSON values.

    {"name", "precision", "reason", "speedup_float32": measurement or null,
     "deployments": [{"precision", "computes_in", "is_default", "problem", "figures": {name: measurement}}],
     "moments": [{"at", "latency_ms": measurement}]}
    """
    record = study.reference
    if record is None:
        record = ReferenceRecord(FLOAT32, FLOAT32, reference_text(study))
    return {
        "name": record.name,
        "precision": record.precision,
        "reason": record.reason,
        "speedup_float32": record.over_float32.to_dict() if record.over_float32 is not None else None,
        "deployments": [
            {
                "precision": each.precision,
                "computes_in": each.computes_in,
                "is_default": each.is_default,
                "problem": each.problem,
                "figures": {name: figure.to_dict() for name, figure in each.figures.items()},
            }
            for each in record.deployments
        ],
        "moments": [{"at": each.at.isoformat(), "latency_ms": each.latency.to_dict()} for each in record.moments],
    }


def _over(record: ReferenceRecord) -> str:
    """How fast a reference is next to float32, where it is another precision."""
    return f", {_figure(record.over_float32)} as fast as {FLOAT32}" if record.over_float32 is not None else ""


def _is_shown(deployment: FreeDeployment) -> bool:
    return bool(deployment.figures) or deployment.problem is not None


def _figure(measured: Measurement) -> str:
    return f"{short_text(measured.value, measured.unit)} {spread_text(measured)}".strip()


def _milliseconds(latency: Measurement) -> str:
    return f"{full_text(latency.value, latency.unit)} ms"
