"""Ray, started here or joined where RAY_ADDRESS names a cluster. Import this before `ray`: it reads settings at import."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # verbose=0 is silent only with the old output

import ray

OBJECT_STORE_BYTES = 200 * 2**20
"""Results are small and weights stay with their worker; Ray would take 30 % of the memory."""


def is_cluster_named() -> bool:
    """Whether RAY_ADDRESS names a cluster."""
    return bool(os.environ.get("RAY_ADDRESS"))


def connect(workers: int = 1) -> None:
    """Join the cluster RAY_ADDRESS names, else start Ray on this machine for `workers`; nothing where that is done."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if ray.is_initialized():
        return
    if is_cluster_named():
        ray.init(**quiet)
    else:
        ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
