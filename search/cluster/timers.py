"""The timer that a target needs: a bench here, or one on the node that the target is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...compression.batches import example_arrays
from ...core.batch import Batch
from ...hardware_profiles.bench.bench import Bench
from ...hardware_profiles.bench.shaped_batches import ShapedBatch
from ...hardware_profiles.bench.timer import Timer
from ...hardware_profiles.cards.target import Target
from ...workloads.calls import DynamicAxes, resized, sizes_of


def timer_of(
    target: Target, reference: Path, example_input: Batch, cores: Sequence[int], axes: DynamicAxes | None = None
) -> Timer:
    """A timer of `target`, started, whose reference is the uncompressed model's artifact.

    Args:
        example_input: batches are made of it.
        cores: that a bench on this machine is pinned to.
        axes: dynamic ones of the inputs, which the target's shapes are sizes of.

    Raises:
        TargetError: it is remote, and no node of the Ray cluster advertises it.
    """
    inputs = example_arrays(example_input, target.batch)
    shaped = _shaped_batches(target, example_input, axes or {})
    if target.remote:
        from .remote_bench import RemoteBench  # only here: importing ray takes a second

        return RemoteBench(target, reference, inputs, shaped)
    bench = Bench(target, reference, inputs, cores, shaped)
    if not target.predict:
        bench.start()  # in the background, while the first candidate is compressed
    return bench


def _shaped_batches(target: Target, example_input: Batch, axes: DynamicAxes) -> list[ShapedBatch]:
    """A batch of each shape that the target names; the example's values cut off, or repeated."""
    of_example = sizes_of(axes, example_input)
    return [
        ShapedBatch(
            shape.name,
            shape.weight,
            example_arrays(resized(example_input, axes, {**of_example, **shape.sizes}), target.batch),
        )
        for shape in target.shapes or ()
    ]
