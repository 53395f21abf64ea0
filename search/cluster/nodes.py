"""The nodes of the cluster, and how many workers each has room for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from .cluster import ray  # before anything else of Ray

from ray._private.state import available_resources_per_node  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

LEAST_FRACTION = 1e-4
"""The least part of a resource that Ray counts: five workers of a fifth of a GPU are one GPU, as floats not quite."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive.

    Attributes:
        id: Ray's; a node that was started again has another one.
        name: how messages call it.
        slots: how many workers it has room for, if nothing else runs on it.
        free: how many more it has room for at this moment.
    """

    id: str
    name: str
    slots: int
    free: int = field(compare=False)

    @property
    def affinity(self) -> NodeAffinitySchedulingStrategy:
        """The scheduling strategy of what is to run there or nowhere."""
        return NodeAffinitySchedulingStrategy(self.id, soft=False)


def alive_nodes(resources: Mapping[str, float]) -> dict[str, Node]:
    """Id -> node, of those that are alive.

    Args:
        resources: what one worker takes, as Ray calls it: {"CPU": 1}.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    free = {id: node["Resources"] for id, node in alive.items()} if _is_client() else available_resources_per_node()
    return {
        id: Node(id, _name(node), _slots(node["Resources"], resources), _slots(free.get(id, {}), resources))
        for id, node in alive.items()
    }


def driver_node() -> str | None:
    """The id of the node whose files this process reads; None where it is a client of a cluster elsewhere."""
    return None if _is_client() else ray.get_runtime_context().get_node_id()


def _is_client() -> bool:
    """Whether this process is a client of a cluster elsewhere, which hears nothing of what is taken there."""
    return os.environ.get("RAY_ADDRESS", "").startswith("ray://")


def _name(node: Mapping[str, str]) -> str:
    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return f"{host} ({address}, {node['NodeID'][:6]})"  # a machine may run several


def _slots(offered: Mapping[str, float], resources: Mapping[str, float]) -> int:
    times = (offered.get(name, 0) / amount for name, amount in resources.items() if amount)
    return int(min(times) + LEAST_FRACTION)
