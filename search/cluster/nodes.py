"""The nodes of the cluster, and how many workers each has room for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .cluster import ray  # before anything else of Ray

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive.

    Attributes:
        id: Ray's; a node that was started again has another one.
        name: how messages call it.
        slots: how many workers it has room for, if nothing else runs on it.
    """

    id: str
    name: str
    slots: int

    @property
    def affinity(self) -> NodeAffinitySchedulingStrategy:
        """The scheduling strategy of what is to run there or nowhere."""
        return NodeAffinitySchedulingStrategy(self.id, soft=False)


def alive_nodes(resources: Mapping[str, float]) -> dict[str, Node]:
    """Id -> node, of those that are alive.

    Args:
        resources: what one worker takes, as Ray calls it: {"CPU": 1}.
    """
    nodes = (
        Node(node["NodeID"], _name(node), _slots(node["Resources"], resources)) for node in ray.nodes() if node["Alive"]
    )
    return {node.id: node for node in nodes}


def driver_node() -> str | None:
    """The id of the node whose files this process reads; None where it is a client of a cluster elsewhere."""
    is_client = os.environ.get("RAY_ADDRESS", "").startswith("ray://")
    return None if is_client else ray.get_runtime_context().get_node_id()


def _name(node: Mapping[str, str]) -> str:
    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return f"{host} ({address}, {node['NodeID'][:6]})"  # a machine may run several


def _slots(offered: Mapping[str, float], resources: Mapping[str, float]) -> int:
    return min(int(offered.get(name, 0) // amount) for name, amount in resources.items() if amount)
