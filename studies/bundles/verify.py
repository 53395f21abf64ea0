"""An exported bundle held against its card, on this machine.

A bundle is data. What scores it, the user names; its model is a file for a runtime that only computes, or it is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...compression.packing.packed_file import digest, load_packed, packed_bytes, recorded_digest
from ...core.batch import INPUT, Batch, by_name, from_names
from ...core.errors import TargetError, UserError
from ...evaluators.accuracy import score
from ...evaluators.evaluator import Context
from ...hardware_profiles.bench.bench import bench_cores
from ...hardware_profiles.bench.timer import TIMING_SECONDS, Timer
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.runtimes.base import get_runtime
from ...hardware_profiles.runtimes.onnx.signature import refuse_external_data
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...workloads.workload import describe
from ..wording import full_text
from .bundle import Bundle, InputInfo, open_bundle
from .judge import Judge

ACCURACY_TOLERANCE = 0.05
"""Of the loss that is worth nothing: 0.005 of a fraction."""

SPEEDUP_TOLERANCE = 0.1
"""How far a speed-up may be from the recorded one, or as far as the card's own interval goes where that is further."""

SECONDS = 2 * TIMING_SECONDS
PACKED = "packed.safetensors"

OpenTimer = Callable[[Target, Path, Batch, Sequence[int], Mapping[str, Mapping[int, str]]], Timer]
"""(target, reference, example inputs, cores of a bench on this machine, dynamic axes) -> what times artifacts of that target."""


@dataclass(frozen=True)
class Check:
    """One claim of a card: what it says, what was found here, what difference is allowed, and whether it holds; None
    where it cannot be checked here."""

    claim: str
    recorded: str
    found: str
    allowed: str
    holds: bool | None


def verify_bundle(folder: Path, open_timer: OpenTimer, judge: Judge | None = None) -> Iterator[Check]:
    """Check what the card claims, one by one: the files, their sizes, the accuracy and the paired speed-up.

    Args:
        folder: as `export_bundle` wrote it, or somebody else.
        open_timer: `search.cluster.timers.timer_of`; a remote target is timed where it is.
        judge: what the accuracy is scored by; without one it is not checked.

    Raises:
        UserError: no bundle, one of a later schema, or one that is not all in its folder; a workload for other inputs.
    """
    bundle = open_bundle(folder)
    changed = bundle.changed()
    found = f"{', '.join(changed)} changed" if changed else "unchanged"
    yield Check("files, by sha256", f"{len(bundle.card.files)} files", found, "none", not changed)
    model, recorded = bundle.artifact("model"), bundle.card.measurements.artifact_bytes.value
    yield Check("artifact_bytes", f"{recorded:.0f}", str(model.bytes), "none", model.bytes == recorded)
    yield from _packed(bundle)
    reason = _why_not_loaded(bundle, judge)
    yield from _accuracy(bundle, judge, reason)
    yield _speedup(bundle, judge, open_timer, reason)


def _packed(bundle: Bundle) -> Iterator[Check]:
    """Whether the packed file takes what was measured, and comes back as the weights that were packed."""
    path, measured = bundle.folder / PACKED, bundle.card.measurements.packed_bytes
    if PACKED not in bundle.card.files or measured is None or not path.exists():
        return
    found = packed_bytes(path)
    yield Check("packed_bytes", f"{measured.value:.0f}", str(found), "none", found == measured.value)
    claim = "packed weights, by digest"
    try:
        before, after = recorded_digest(path), digest(load_packed(path, bundle.artifact("reference").bytes))
    except ValueError as error:
        yield Check(claim, "", str(error), "none", False)
    else:
        yield Check(claim, before, after, "none", before == after)


def _why_not_loaded(bundle: Bundle, judge: Judge | None) -> str | None:
    """Why the model and the reference are not loaded here; None where they are.

    Raises:
        UserError: they are not files that the target's runtime loads, or read other files.
    """
    name, artifacts = bundle.card.target.runtime, [bundle.artifact(stem) for stem in ("model", "reference")]
    made_here = judge.made_here if judge else frozenset()
    if RUNTIMES[name].runs_code and not made_here.issuperset(artifact.sha256 for artifact in artifacts):
        return f"not run: files of {name} may hold code; verify it with the study that made it, which runs its own"
    try:
        suffix = get_runtime(name).suffix
    except TargetError as error:
        return f"not run: {error}"
    for artifact in artifacts:
        if artifact.path.suffix != suffix:
            raise UserError(f"{bundle.folder}: {artifact.path.name} is not a {suffix} file, which {name} loads")
        if suffix == ".onnx":
            refuse_external_data(artifact.path)
    return None


def _accuracy(bundle: Bundle, judge: Judge | None, reason: str | None) -> Iterator[Check]:
    recorded, metric = bundle.card.measurements.accuracy.value, bundle.card.metric
    recorded_text, tolerance = full_text(recorded, metric.unit), ACCURACY_TOLERANCE * metric.margin
    if judge is None or reason is not None:
        yield Check(
            "accuracy", recorded_text, reason or "not scored: a workload or a study says on what data", "", None
        )
        return
    yield _same_workload(bundle, judge)
    target, model = bundle.card.target, bundle.artifact("model")
    context = Context(judge.workload, target, get_runtime(target.runtime))
    try:
        value = score(model, judge.workload.validation, context).value
    except Exception as error:  # a runtime raises anything over a model that is not what its card says
        yield Check("accuracy", recorded_text, f"cannot be scored: {describe(error)}", f"{tolerance:.4g}", False)
    else:
        close = abs(value - recorded) <= tolerance
        yield Check("accuracy", recorded_text, full_text(value, metric.unit), f"{tolerance:.4g}", close)


def _same_workload(bundle: Bundle, judge: Judge) -> Check:
    """Whether the bundle was made of this very model and these data, by its own account.

    Raises:
        UserError: the workload's inputs do not fit the bundle's model.
    """
    example = by_name(judge.workload.example_input, INPUT)
    given = {name: list(tensor.shape[1:]) for name, tensor in example.items()}
    taken = {info.name: info.shape[1:] for info in bundle.card.takes}
    if not _fits(given, bundle.card.takes):
        raise UserError(
            f"workload {judge.workload.name} has inputs of {_shapes(given)}, the model of {bundle.folder} takes {_shapes(taken)}"
        )
    recorded = (bundle.card.provenance.workload_fingerprint or "none")[:16]
    found = judge.fingerprint[:16]
    same = found == recorded
    return Check("workload", recorded, found if same else f"{found}: other weights or data", "", same or None)


def _fits(given: Mapping[str, list[int]], takes: Sequence[InputInfo]) -> bool:
    """Whether inputs, shapes without the batch, are those of a model, whose dynamic axes take any size."""
    if given.keys() != {info.name for info in takes} or any(len(given[i.name]) != len(i.shape) - 1 for i in takes):
        return False
    sizes = (
        (info.axes, axis, info.shape[axis], given[info.name][axis - 1])
        for info in takes
        for axis in range(1, len(info.shape))
    )
    return all(f"{axis}" in axes or size == own for axes, axis, size, own in sizes)


def _shapes(inputs: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{shape}" if name == INPUT else f"{name} {shape}" for name, shape in inputs.items())


def _speedup(bundle: Bundle, judge: Judge | None, open_timer: OpenTimer, reason: str | None) -> Check:
    """The paired speed-up measured again where the target is; not checked where nobody can get there."""
    target, recorded = bundle.card.target, bundle.card.measurements.speedup
    claim, recorded_text = "speedup", f"{recorded.value:.3f}"
    cores = bench_cores(target.threads)
    if target.predict:
        reason = "not measured: predicted for a machine elsewhere"
    elif len(cores) < target.threads and not target.remote:
        reason = f"not measured: the target has {target.threads} threads, this process {len(cores)} cores"
    if reason is not None:
        return Check(claim, recorded_text, reason, "", None)
    example = judge.workload.example_input if judge else _random_inputs(bundle)
    try:
        with open_timer(target, bundle.artifact("reference").path, example, cores, _dynamic_axes(bundle)) as timer:
            found = timer.time(bundle.artifact("model").path, SECONDS).speedup
    except TargetError as error:  # no node of a cluster is it
        return Check(claim, recorded_text, f"not measured: {error}", "", None)
    except Exception as error:  # a runtime raises anything over a model that is not what its card says
        return Check(claim, recorded_text, f"cannot be timed: {describe(error)}", f"{SPEEDUP_TOLERANCE:.0%}", False)
    low, high = recorded.value * (1 - SPEEDUP_TOLERANCE), recorded.value * (1 + SPEEDUP_TOLERANCE)
    # A noisy one may be at the end of its own interval, and what is within that is what the card claims.
    low, high = min(low, recorded.low), max(high, recorded.high)
    return Check(claim, recorded_text, f"{found:.3f}", f"{low:.3f} to {high:.3f}", low <= found <= high)


def _dynamic_axes(bundle: Bundle) -> dict[str, dict[int, str]]:
    return {info.name: {int(axis): name for axis, name in info.axes.items()} for info in bundle.card.takes}


def _random_inputs(bundle: Bundle) -> Batch:
    """One sample as the card describes it, each input of shape [1, ...]: random floats, and ones, which most things count or
    name."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for info in bundle.card.takes:
        shape, dtype = (1, *info.shape[1:]), getattr(torch, info.dtype)
        floats = torch.randn(shape, generator=generator)
        inputs[info.name] = floats.to(dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
    return from_names(inputs, INPUT)
