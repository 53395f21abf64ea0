"""Policies lowered for their target and timed by the paired bench, for comparing samplers; every timing is kept on disk.

Policies whose artifacts differ in the values of their weights and grids only share a timing: the runtime does the same work.
"""

import json
import statistics
import tempfile
from pathlib import Path
from types import TracebackType

from slimfront.compression.pruning.prune import kept_channels
from slimfront.hardware_profiles.bench.paired_timing import PairedTiming
from slimfront.search.measured_table import compress
from slimfront.search.trials.baseline import lower_reference
from slimfront.search.trials.prepared_study import PreparedStudy
from slimfront.spaces.policies.policy import Policy

SECONDS = {"search": 1.0, "judge": 2.0}
"""Of one timing: what a search sees, as its trials do, and what its front is judged by, from other loadings of the artifact."""

LOADINGS = {"search": 1, "judge": 8}
"""At most; the artifact is loaded and timed again as long as the bench calls the figure noisy, and the narrowest interval counts."""


class MeasuredLatency:
    """Latency of policies over the uncompressed model's, 1 / speed-up, on the target of one prepared study.

    Args:
        file: JSON lines of what was timed before, on this machine, by artifact and purpose.
    """

    def __init__(self, prepared: PreparedStudy, file: Path) -> None:
        self._prepared, self._file = prepared, file
        self._folder = tempfile.TemporaryDirectory(prefix="slimfront-latency-")
        self._bench = prepared.bench(lower_reference(prepared.context, Path(self._folder.name) / "reference"))
        lines = file.read_text().splitlines() if file.exists() else []
        self._known = {(row["artifact"], row["purpose"]): row for row in map(json.loads, lines)}

    def __enter__(self) -> "MeasuredLatency":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self._bench.close()
        self._folder.cleanup()

    def of(self, policy: Policy, purpose: str) -> float:
        """Relative latency of `policy`; the first timing for a purpose of `SECONDS` is the one that counts.

        Raises:
            TrialError: the policy cannot be compressed, lowered or timed.
        """
        key = self._work_of(policy), purpose
        if key not in self._known:
            self._known[key] = {"artifact": key[0], "purpose": purpose, **self._timed(policy, purpose)}
            with self._file.open("a") as file:
                file.write(json.dumps(self._known[key]) + "\n")
        return 1 / self._known[key]["speedup"]

    def spread(self, purpose: str) -> float:
        """Half of the median timing's 95 % interval, relative."""
        rows = [row for (_, timed_for), row in self._known.items() if timed_for == purpose]
        return statistics.median((row["high"] - row["low"]) / 2 / row["speedup"] for row in rows)

    def _timed(self, policy: Policy, purpose: str) -> dict[str, float]:
        prepared = self._prepared
        path = Path(self._folder.name) / f"candidate{prepared.context.runtime.suffix}"
        example = prepared.context.workload.example_input
        artifact = prepared.context.runtime.lower(compress(prepared, policy), example, prepared.target, path)
        timings: list[PairedTiming] = []
        while len(timings) < LOADINGS[purpose] and all(timing.noisy for timing in timings):
            timings.append(self._bench.time(artifact.path, SECONDS[purpose]))
        best = min(timings, key=lambda timing: timing.high / timing.low)
        return {"speedup": best.speedup, "low": best.low, "high": best.high}

    def _work_of(self, policy: Policy) -> str:
        """What the artifact does: channels kept and each layer's grids; a weight of fewer than 8 bits is stored as int8 too."""
        layers = [policy.layer(layer.name) for layer in self._prepared.layers]
        grids = [(max(8, layer.weight_bits), layer.activation_bits) for layer in layers]
        return json.dumps([kept_channels(policy, self._prepared.groups), grids])
