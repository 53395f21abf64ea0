"""A table of layer costs that predicts a model's latency on a target, stored in the target's card; `prediction` fits it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

Costs = dict[str, float]


class LatencyTable(BaseModel):
    """Costs of a model's layers on a target, as shares of the uncompressed model's latency.

    Attributes:
        model: fingerprint of the layers it holds for, dotted module paths.
        costs: "conv2d.i8.macs", "blocks.0.conv1.i8", ... -> share of the reference's latency per unit.
        reference_ms: latency of the uncompressed model there.
        error: median absolute relative error on policies it was not fitted to.
        error_95: 95th percentile of it, which intervals are made of.
        policies: how many it was fitted to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: list[str]
    costs: dict[str, float]
    reference_ms: float
    error: float
    error_95: float
    policies: int

    def missing(self, costs: Mapping[str, float]) -> list[str]:
        """Precisions of a candidate with these amounts of each cost for which the table has no costs: layers in them would
        be predicted to take no time."""
        precisions = {name.split(".")[1] for name in costs if name.endswith(".calls")}
        known = [p for p in precisions if any(f".{p}." in name or name.endswith(f":{p}") for name in self.costs)]
        return sorted(precisions.difference(known))

    def predict(self, costs: Mapping[str, float]) -> float:
        """Latency in milliseconds of a candidate with these amounts of each cost."""
        return self.reference_ms * sum(self.costs.get(name, 0.0) * amount for name, amount in costs.items())
