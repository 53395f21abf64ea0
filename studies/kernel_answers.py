"""What bit-widths are good for on a target: as its runtime reports it of the workload's own model, never as one would guess."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..compression.quantize import quantize
from ..errors import TargetError, TrialError
from ..hardware_profiles.runtime import RUNTIMES, get_runtime
from ..hardware_profiles.target import Target
from ..spaces.candidate import Candidate
from ..spaces.layers import find_layers
from ..spaces.policy import BFLOAT16_BITS, FULL_PRECISION, LayerPolicy, Policy
from ..spaces.scheme import Scheme
from ..threads import torch_threads
from ..workloads.workload import MapDataset, Workload, describe
from .executed import BITS

CONTAINER_BITS = 8
SAMPLES = 1
"""Of the calibration split: precisions do not depend on how well a range was found."""

Pair = tuple[int, int]


def why_float_only(workload: Workload) -> str | None:
    """Why no layer of the model can be quantized, on any target, or None where they can."""
    model, example = workload.model.eval(), workload.example_input
    layers = {
        layer.name: LayerPolicy(CONTAINER_BITS) for layer in find_layers(model, example)[:1]
    }  # one traces as all do
    try:
        quantize(model, example, Policy(layers=layers), _some(workload))
    except Exception as reason:  # tracing may raise anything in a user's model
        return str(reason) if isinstance(reason, TrialError) else describe(reason)
    return None


def bits_on(workload: Workload, target: Target) -> dict[str, str]:
    """ "weight 8" or "activation 4" -> what it is good for on `target`.

    A card that was measured has been asked already. Widths below 8 share 8-bit containers, so that the narrowest is asked
    for all of them. Where nobody can be asked, that is what is said.
    """
    try:
        answers = _of_card(target) if target.measured else _of_runtime(workload, target)
    except (TargetError, TrialError) as reason:
        answers = str(reason)
    said = {}
    for kind, offered in (("weight", target.weight_bits), ("activation", target.activation_bits)):
        for bits in sorted(offered):
            said[f"{kind} {bits}"] = (
                "float32, as it is"
                if bits == FULL_PRECISION
                else f"not asked: {answers}"
                if isinstance(answers, str)
                else _in_words(bits, answers.get(_pair(kind, bits, target), {}))
            )
    return said


def _pair(kind: str, bits: int, target: Target) -> Pair:
    """The weight and activation bits that are asked for a width of one of them."""
    if bits == BFLOAT16_BITS:  # nothing multiplies it with other numbers
        return bits, bits if bits in target.activation_bits else FULL_PRECISION
    offered = target.weight_bits if kind == "weight" else target.activation_bits
    asked = min(offered) if bits < CONTAINER_BITS else bits
    other_offered = target.activation_bits if kind == "weight" else target.weight_bits
    other = CONTAINER_BITS if bits <= CONTAINER_BITS and CONTAINER_BITS in other_offered else FULL_PRECISION
    return (asked, other) if kind == "weight" else (other, asked)


def _in_words(bits: int, executed: Mapping[str, str]) -> str:
    if not executed:
        return "not reported"
    counts = Counter(executed.values()).most_common()
    told = ", ".join(f"{precision} in {count} of {len(executed)}" for precision, count in counts)
    wasted = all(bits < BITS.get(precision, 0) for precision in executed.values())
    return f"storage only: {told}" if wasted else told


def _of_card(target: Target) -> dict[Pair, dict[str, str]]:
    assert target.measured is not None
    found: dict[Pair, dict[str, str]] = {}
    for kernel in target.measured.kernels:
        if kernel.executed is not None:
            found.setdefault((kernel.weight_bits, kernel.activation_bits), {})[kernel.operation] = kernel.executed
    return found


def _of_runtime(workload: Workload, target: Target) -> dict[Pair, dict[str, str]] | str:
    if target.remote or target.predict:
        return "the target is elsewhere; profile it there"
    if target.options.get("compile"):
        return "every answer takes a compilation of half a minute; `slimfront profile` asks for them"
    widths = [("weight", bits) for bits in target.weight_bits] + [("activation", b) for b in target.activation_bits]
    pairs = {_pair(kind, bits, target) for kind, bits in widths if bits != FULL_PRECISION}
    layers = [layer.name for layer in find_layers(workload.model, workload.example_input)]
    return {pair: _executed(workload, target, layers, pair) for pair in sorted(pairs)}


def _executed(workload: Workload, target: Target, names: Sequence[str], pair: Pair) -> dict[str, str]:
    """Layer -> precision with every layer at this pair of widths."""
    runtime = get_runtime(target.runtime)
    model, example = workload.model.eval(), workload.example_input
    layers = {name: LayerPolicy(*pair) for name in names}
    symmetric = RUNTIMES[target.runtime].symmetric
    policy = Policy(layers=layers, scheme=Scheme(activations="symmetric") if symmetric else Scheme())
    candidate = Candidate(policy, model, quantize(model, example, policy, _some(workload)))
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):  # a session of torch's sets the process's number
        path = Path(folder) / f"model{runtime.suffix}"
        return runtime.load(runtime.lower(candidate, example, target, path).path, target).executed_precisions()


def _some(workload: Workload) -> MapDataset:
    return [workload.calibration[index] for index in range(min(SAMPLES, len(workload.calibration)))]
