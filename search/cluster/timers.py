"""The timer that a target needs: a bench here, or one on the node that the target is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...compression.batches import example_arrays
from ...core.batch import Batch
from ...hardware_profiles.bench.bench import Bench
from ...hardware_profiles.bench.timer import Timer
from ...hardware_profiles.cards.target import Target


def timer_of(target: Target, reference: Path, example_input: Batch, cores: Sequence[int]) -> Timer:
    """A timer of `target`, started, whose reference is the uncompressed model's artifact.

    Args:
        example_input: batches are made of it.
        cores: that a bench on this machine is pinned to.

    Raises:
        TargetError: it is remote, and no node of the Ray cluster advertises it.
    """
    inputs = example_arrays(example_input, target.batch)
    if target.remote:
        from .remote_bench import RemoteBench  # only here: importing ray takes a second

        return RemoteBench(target, reference, inputs)
    bench = Bench(target, reference, inputs, cores)
    if not target.predict:
        bench.start()  # in the background, while the first candidate is compressed
    return bench
