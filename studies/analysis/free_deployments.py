"""Which free deployment of the uncompressed model is a study's reference, and which float precisions pay for candidates.

A user who compresses nothing deploys the fastest of them that loses nothing. A speed-up over anything slower would be one
that nobody gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...core.errors import UserError
from ...core.measurement import Measurement
from ...spaces.policies.float_precision import FLOAT32, FloatPrecision
from ..store.records import FreeDeployment

Wanted = Literal["best", "default", "float32"]
"""The values of a study file's key `reference`."""


def choose(deployments: Sequence[FreeDeployment], wanted: Wanted) -> tuple[FreeDeployment, str]:
    """The reference, and why it was chosen.

    "best" is the fastest deployment whose accuracy drop against float32 is not above 0 beyond noise: its paired 95 % interval
    does not lie above 0. The runtime's default is taken where no other one is faster than it beyond noise.

    Args:
        deployments: the runtime's default first.

    Raises:
        UserError: the one that is wanted is not among them, or could not be measured.
    """
    if wanted != "best":
        return _wanted(deployments, wanted), f"the study file asks for {wanted}"
    if len(deployments) == 1:
        return deployments[0], "the target computes floats in no other precision"
    kept = [each for each in deployments if each.figures and not loses(each)]
    fastest = max(kept, key=lambda each: speed(each).value)
    usual = deployments[0]
    if usual in kept and not is_faster(fastest, usual):
        return usual, f"the runtime's default; none of {len(deployments)} free deployments is faster beyond noise"
    return fastest, f"the fastest of {len(deployments)} free deployments, without a loss of accuracy beyond noise"


def paying(deployments: Sequence[FreeDeployment], chosen: FreeDeployment) -> tuple[FloatPrecision, ...]:
    """The float precisions that a space offers where the study file leaves them open, the reference's first.

    The others pay where they are as fast as the reference within noise. Where the reference is not the runtime's default, all
    that were measured are offered: which is fastest depends on the model there, and so may do so on the candidate.
    """
    others = [each for each in deployments if each.figures and each is not chosen]
    if chosen.is_default:
        others = [each for each in others if not is_faster(chosen, each)]
    return (chosen.precision, *(each.precision for each in others))


def loses(deployment: FreeDeployment) -> bool:
    """Whether it is less accurate than float32 beyond noise."""
    return deployment.figures["accuracy_drop"].low > 0


def is_faster(one: FreeDeployment, other: FreeDeployment) -> bool:
    """Whether one is faster than the other beyond noise: their intervals do not touch."""
    return speed(one).low > speed(other).high


def speed(deployment: FreeDeployment) -> Measurement:
    """How fast it is in multiples of float32."""
    return deployment.figures["speedup_float32"]


def _wanted(deployments: Sequence[FreeDeployment], wanted: Wanted) -> FreeDeployment:
    for each in deployments:
        if each.is_default if wanted == "default" else each.precision == FLOAT32:
            if each.problem is not None:
                raise UserError(f"the uncompressed model cannot be deployed in {each.computes_in}: {each.problem}")
            return each
    raise UserError(f"the target has no {wanted} deployment, only {', '.join(e.precision for e in deployments)}")
