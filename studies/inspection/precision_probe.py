"""What bit-widths gain on a target, as its runtime reports it for the workload's own model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ...core.batch import Batch
from ...core.errors import TargetError, TrialError
from ...core.interrupts import raise_if_interrupted
from ...core.machine.memory import tidy
from ...core.threads import torch_threads
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.runtimes.base import get_runtime
from ...hardware_profiles.runtimes.lowered import lowered
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...spaces.knobs.registry import KNOB_KINDS
from ...spaces.models.layers import Layer
from ...spaces.policies.candidate import Candidate, Quantization
from ...spaces.policies.float_precision import DEFAULT
from ...spaces.policies.layer_policy import BFLOAT16_BITS, FULL_PRECISION
from ...spaces.policies.policy import LayerPolicy, Policy
from ...spaces.policies.quantization_scheme import Scheme
from ...spaces.policies.recurrent_weights import INT8_BITS, RECURRENT_WEIGHTS
from ...workloads.workload import MapDataset, Workload, describe
from ..files.executed import BITS

CONTAINER_BITS = 8
SAMPLES = 2
"""The number of calibration samples: precisions do not depend on the quality of ranges. The model is captured for two samples
anyway, where norms are folded."""

Pair = tuple[int, int]
Answer = Mapping[str, str] | str
"""Layer -> the precision it runs in, or the reason why that is not known."""


def why_float_only(workload: Workload, layers: Sequence[Layer]) -> str | None:
    """Why none of the model's `layers` can be quantized, on any target, or None where they can."""
    model, example = workload.model.eval(), workload.example_input
    first = {layer.name: LayerPolicy(CONTAINER_BITS) for layer in _plain(layers)[:1]}  # one traces as all do
    try:
        _quantize(model, example, Policy(layers=first), _some(workload))
    except Exception as reason:  # tracing may raise anything in a user's model
        raise_if_interrupted(reason)
        return str(reason) if isinstance(reason, TrialError) else describe(reason)
    return None


def _plain(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.is_product]


def bits_on(workload: Workload, layers: Sequence[Layer], target: Target) -> dict[str, str]:
    """ "weight 8" or "activation 4" -> what it gains the model's `layers` on `target`.

    A card that was measured has been asked already. Widths below 8 share 8-bit containers, so that the narrowest is asked
    for all of them. Where nobody can be asked, or a width cannot be lowered, that is what is said.
    """
    answers = _of_card(target) if target.measured else _of_runtime(workload, layers, target)
    said = {}
    for kind, offered in (("weight", target.weight_bits), ("activation", target.activation_bits)):
        for bits in sorted(offered):
            answer = answers if isinstance(answers, str) else answers.get(_pair(kind, bits, target), {})
            said[f"{kind} {bits}"] = "float32, as it is" if bits == FULL_PRECISION else _in_words(bits, answer)
    recurrent = _recurrent_on(workload, [layer for layer in layers if layer.is_recurrent], target)
    return said | recurrent | _tables_on(layers, target)


def _recurrent_on(workload: Workload, layers: Sequence[Layer], target: Target) -> dict[str, str]:
    """ "recurrent int8" or "recurrent dynamic" -> what it gains recurrent `layers` on `target`; nothing where there are none."""
    if why_not_asked(target):
        return {}
    kind, said = KNOB_KINDS["recurrent_weights"], {}
    for choice in RECURRENT_WEIGHTS[1:]:
        need = kind.needs.get(choice)
        names = [layer.name for layer in layers if kind.why_not(choice, layer) is None]
        if names and (need is None or getattr(RUNTIMES[target.runtime], need.capability)):
            answer = _asked(workload, target, Policy(recurrent=dict.fromkeys(names, choice)))
            said[f"recurrent {choice}"] = _in_words(INT8_BITS, answer)
    return said


def _tables_on(layers: Sequence[Layer], target: Target) -> dict[str, str]:
    """ "embedding 8" or "embedding 4" -> what it gains the tables of `layers` on `target`, which nothing multiplies; nothing where it has none."""
    if not any(layer.is_embedding for layer in layers):
        return {}
    stored = "storage only: rows become floats as they are looked up"
    return {
        f"embedding {bits}": stored
        if getattr(RUNTIMES[target.runtime], need.capability)
        else f"not taken: {target.runtime} {need.lacking}"
        for bits, need in KNOB_KINDS["embedding_bits"].needs.items()
    }


def floats_on(target: Target) -> dict[str, str]:
    """ "floats" -> the precisions that a target on this machine computes a whole model's floats in, its default first.

    Which of them is the reference, and which pay for candidates, only timing the model says.
    """
    if target.remote or target.predict:
        return {}
    try:
        runtime = get_runtime(target.runtime)
    except TargetError as error:
        return {"floats": str(error)}
    default, *others = runtime.float_precisions(target)
    named = [f"{runtime.default_float_precision(target)} by default" if default == DEFAULT else default, *others]
    if not others:
        return {"floats": f"{named[0]} only"}
    return {"floats": f"{', '.join(named)}; a search times the uncompressed model in each, and begins from the fastest"}


def _pair(kind: str, bits: int, target: Target) -> Pair:
    """The weight and activation bits that are asked for a width of one of them."""
    if bits == BFLOAT16_BITS:  # nothing multiplies it with other numbers
        return bits, bits if bits in target.activation_bits else FULL_PRECISION
    offered = target.weight_bits if kind == "weight" else target.activation_bits
    asked = min(offered) if bits < CONTAINER_BITS else bits
    other_offered = target.activation_bits if kind == "weight" else target.weight_bits
    other = CONTAINER_BITS if bits <= CONTAINER_BITS and CONTAINER_BITS in other_offered else FULL_PRECISION
    return (asked, other) if kind == "weight" else (other, asked)


def _in_words(bits: int, executed: Answer) -> str:
    if isinstance(executed, str):
        return f"not asked: {executed}"
    if not executed:
        return "not reported"
    counts = Counter(executed.values()).most_common()
    precisions = ", ".join(f"{precision} in {count} of {len(executed)}" for precision, count in counts)
    wasted = all(bits < BITS.get(precision, 0) for precision in executed.values())
    return f"storage only: {precisions}" if wasted else precisions


def _of_card(target: Target) -> Mapping[Pair, Answer]:
    assert target.measured is not None
    found: dict[Pair, dict[str, str]] = {}
    for kernel in target.measured.kernels:
        if kernel.executed is not None:
            found.setdefault((kernel.weight_bits, kernel.activation_bits), {})[kernel.operation] = kernel.executed
    return found


def why_not_asked(target: Target) -> str | None:
    """Why a target's runtime is not asked here how it runs a model, or None where it is."""
    if target.remote or target.predict:
        return "the target is elsewhere; profile it there"
    if target.options.get("compile"):
        return "every answer takes a compilation of half a minute; `slimfront profile` asks for them"
    return None


def _of_runtime(workload: Workload, layers: Sequence[Layer], target: Target) -> Mapping[Pair, Answer] | str:
    if why := why_not_asked(target):
        return why
    widths = [("weight", bits) for bits in target.weight_bits] + [("activation", b) for b in target.activation_bits]
    pairs = {_pair(kind, bits, target) for kind, bits in widths if bits != FULL_PRECISION}
    names = [layer.name for layer in _plain(layers)]
    # The range that is found soonest.
    scheme = Scheme("min_max", activations=RUNTIMES[target.runtime].activations)
    return {
        pair: _asked(workload, target, Policy(layers={name: LayerPolicy(*pair) for name in names}, scheme=scheme))
        for pair in sorted(pairs)
    }


def _quantize(model: nn.Module, example: Batch, policy: Policy, calibration: MapDataset) -> Quantization:
    from ...compression.quantization.quantize import quantize  # only here: it imports torchao, which takes two seconds

    return quantize(model, example, policy, calibration)


def _asked(workload: Workload, target: Target, policy: Policy) -> Answer:
    try:
        return _executed(workload, target, policy)
    except (TargetError, TrialError) as reason:  # of this policy: the others may run all the same
        return str(reason)
    finally:
        tidy()  # before the next model is captured and compiled


def _executed(workload: Workload, target: Target, policy: Policy) -> dict[str, str]:
    """Layer -> precision of the layers that a policy decides on."""
    runtime = get_runtime(target.runtime)
    model, example = workload.model.eval(), workload.example_input
    candidate = Candidate(policy, model, _quantize(model, example, policy, _some(workload)))
    tidy()  # the captured graphs, of which the grids are left
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):  # a session of torch's sets the process's number
        path = Path(folder) / f"model{runtime.suffix}"
        file = lowered(runtime, candidate, example, target, path).path
        del candidate
        tidy()
        executed = runtime.load(file, target).executed_precisions()
    return {name: executed[name] for name in (*policy.layers, *policy.recurrent) if name in executed}


def _some(workload: Workload) -> MapDataset:
    return [workload.calibration[index] for index in range(min(SAMPLES, len(workload.calibration)))]
