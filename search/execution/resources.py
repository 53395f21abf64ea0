"""What a worker takes of the machines that Ray schedules it on."""

from __future__ import annotations

from ...studies.study_file.parts import ComputeSpec


def worker_resources(compute: ComputeSpec, gpus_there: float) -> dict[str, float]:
    """Ray's resources for one worker, so that as many run at once as there are devices for.

    Args:
        gpus_there: how many GPUs the cluster has: without any, device "auto" asks for none.
    """
    wants_gpu = compute.device == "cuda" or (compute.device == "auto" and gpus_there > 0)
    return {"CPU": compute.cpus or 1, **({"GPU": compute.gpus} if wants_gpu else {})}
