"""One policy applied to one model, without a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ..spaces.policies.policy import Policy
    from ..workloads.workload import Workload


def compress(
    model: nn.Module, policy: Policy | str | Path, workload: str | Workload, *, seed: int = 0, batch_size: int = 64
) -> nn.Module:
    """A compressed copy of `model`, as a trial of the policy makes it: channels removed, weights zeroed, recovered and rounded.

    Only weights are rounded. Activation quantization exists only in the exported artifact, which is what was measured.

    Args:
        model: trained; left as it is.
        policy: a policy, or a `policy.json` of a bundle.
        workload: its data calibrate and recover the model; by name or as an object. Its own model is not used.
        seed: of recovery and of random scores; a study's own, to make the same weights again.
        batch_size: of recovery; a study's own, likewise.

    Returns:
        the model in evaluation mode, float32. Batch-norms that were folded into rounded layers are identities.

    Raises:
        UserError: the workload breaks its contract, or the policy cannot be read.
        CompressionError: the policy does not fit the model.
    """
    from ..compression.compress import compressed, rounded_model
    from ..spaces.policies.policy import Policy
    from ..workloads.load import load_workload

    if not isinstance(policy, Policy):
        policy = read_policy(Path(policy))
    task = load_workload(workload) if isinstance(workload, str) else workload
    return rounded_model(compressed(adopted(replace(task, model=model)), policy, seed, batch_size))


def adopted(workload: Workload) -> Workload:
    """A workload object as slimfront computes with it; the caller's model is left as it is, its mode included."""
    from ..workloads.copies import copied
    from ..workloads.load import adopt_workload

    workload.check()  # that it can be copied, too
    return adopt_workload(replace(workload, model=copied(workload.model)), workload.name or "object", Path.cwd())


def read_policy(path: Path) -> Policy:
    """The policy in a `policy.json`.

    Raises:
        UserError: the file cannot be read, or holds no policy.
    """
    from ..core.documents import MAX_JSON_BYTES, read_file
    from ..core.errors import DocumentError, UserError
    from ..spaces.policies.policy import Policy

    try:
        return Policy.from_json(read_file(path, MAX_JSON_BYTES).decode(errors="replace"))
    except DocumentError as error:
        raise UserError(f"{path}: {error}") from error
