"""The card of a bundle: what was measured of it, where and with what, as JSON and as a page for people.

card.json (schema 1)::

    {"schema": 1, "study", "trial", "policy_digest", "state", "notes": [sentence],
     "measurements": {name: {"value", "low", "high", "unit", "n", "method", "noisy"}},
     "baseline": {"measurements": as above}, "reference": what speed-ups are over, as in the JSON of `front`,
     "metric": what `accuracy` is: {"metric", "unit", "higher_is_better", "margin", "outputs"},
     "test_accuracy": as a measurement, or null where the test split was not scored,
     "target": the target's card, "inputs": [{"name", "shape", "dtype", "axes": {axis: name}}], "outputs": the same,
     "input", "output": the first of them, all that cards of earlier versions have,
     "provenance": {"created", "study_created", "workload", "workload_options", "workload_fingerprint", "seed",
                    "batch_size", "worker", "machine", "versions"},
     "files": {name: {"sha256", "bytes"}}}
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from ...core.measurement import Measurement
from ...core.metrics import METRICS, Quality
from ...hardware_profiles.cards.shape import Shape
from ...hardware_profiles.cards.target import Target
from ...hardware_profiles.profiling.fingerprint import saturates
from ...hardware_profiles.runtimes.base import Signature, TensorInfo
from ...hardware_profiles.runtimes.registry import RUNTIMES
from ...spaces.policies.policy import Policy
from ..analysis.significance import is_lucky
from ..files.executed import storage_only
from ..reference_wording import reference_document
from ..store.records import TIMED, StudyRecord, TrialRecord
from ..wording import (
    bounds_text,
    channel_rows,
    excess_text,
    full_text,
    in_order,
    layer_rows,
    predicted_text,
    recovery_text,
    short_text,
    width_text,
)
from .run_script import loader_of

SCHEMA = 1

_PYRIGHT = re.compile(r"  # pyright: ignore\[\w+\]")


def card_document(
    study: StudyRecord,
    trial: TrialRecord,
    target: Target,
    signature: Signature,
    executed: Mapping[str, str],
    created: datetime,
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The card as plain JSON values.

    Args:
        signature: the artifact's inputs and outputs.
        executed: layer -> precision it ran in.
        created: when the artifact was made.
        files: the bundle's other files, name -> sha256 and bytes.
    """
    measured = _measurements(trial.measurements)
    return {
        "schema": SCHEMA,
        "study": study.name,
        "trial": trial.number,
        "policy_digest": trial.digest,
        "state": trial.state,
        "notes": [*_notes(trial, executed), *_notes_of_machine(study, trial, target)],
        "measurements": measured,
        "baseline": {"measurements": _measurements(study.baseline)},
        "reference": reference_document(study),
        "metric": asdict(study.quality),
        "test_accuracy": measured.get("test_accuracy"),
        "target": target.model_dump(mode="json"),
        "input": _tensor(signature.inputs[0]),
        "output": _tensor(signature.outputs[0]),
        "inputs": [*map(_tensor, signature.inputs)],
        "outputs": [*map(_tensor, signature.outputs)],
        "executed_precisions": dict(executed),
        "provenance": {
            "created": created.isoformat(),
            "study_created": study.created.isoformat(),
            "workload": study.spec.workload,
            "workload_options": study.spec.workload_options,
            "workload_fingerprint": study.workload_fingerprint,
            "seed": study.spec.seed,
            "batch_size": study.spec.recovery.batch_size,
            "worker": trial.worker,
            "machine": {key: value for key, value in study.machine.items() if key != TIMED},  # that is the target's
            "versions": dict(study.versions),
        },
        "files": {name: dict(about) for name, about in files.items()},
    }


def card_page(card: Mapping[str, Any], policy: Policy) -> str:
    """The card as Markdown."""
    target = card["target"]
    parts = [
        f"# {card['study']}, trial {card['trial']}",
        _summary(card),
        *card["notes"],
        "## Measured",
        f"On target {target['name']}: {target['runtime']}, threads {target['threads']}, batch {target['batch']}. "
        f"Speed-ups are over {card['reference']['name']}: {card['reference']['reason']}. "
        f"Accuracy is {Quality(**card['metric']).words}. Intervals are 95 %. What each name means is at the end.{_shapes(target)}",
        _measured_table(card),
        "## Decided",
        f"Width: {width_text(policy)}. Recovery: {recovery_text(policy)}. Policy {card['policy_digest']}.",
        *_decisions(policy, card["executed_precisions"]),
        "## Run it",
        *_how_to_run(card),
        "## Where the numbers come from",
        _bullets(card["provenance"]),
        "## Files",
        _table(
            ("file", "bytes", "sha256"), [(n, f"{f['bytes']:,}", f"`{f['sha256']}`") for n, f in card["files"].items()]
        ),
        "## Names",
        "\n".join(f"- {name}: {METRICS[name].meaning}." for name in card["measurements"] if name in METRICS),
    ]
    return "\n\n".join(parts) + "\n"


def _measurements(measured: Mapping[str, Measurement]) -> dict[str, dict[str, Any]]:
    documents = {measurement.name: measurement.to_dict() for measurement in in_order(measured)}
    return {name: {key: value for key, value in m.items() if key != "name"} for name, m in documents.items()}


def _notes(trial: TrialRecord, executed: Mapping[str, str]) -> list[str]:
    """What a reader of the numbers has to know first."""
    return [
        f"Violates {violation.constraint}, by {excess_text(violation)}: the trial is infeasible and not on the front."
        for violation in trial.violations
        if violation.excess > 0
    ] + [*_notes_of_trial(trial), *_notes_of_figures(trial, executed)]


def _notes_of_trial(trial: TrialRecord) -> Iterator[str]:
    """How the trial ended, and what it was not scored on."""
    if trial.state == "pruned":
        yield f"Recovered in part only, and not on the front: {trial.reason}."
    if trial.state == "complete" and trial.reason:
        yield f"{trial.reason.capitalize()}."
    if "test_accuracy" not in trial.measurements:
        yield "Not scored on the test split: only points of the front are, at the end of a search."
    if is_lucky(trial.measurements):
        yield (
            "Lucky: its accuracy drop on the test split is greater than on the split it was chosen by, beyond the noise of both."
        )


def _notes_of_figures(trial: TrialRecord, executed: Mapping[str, str]) -> Iterator[str]:
    """Figures that were predicted, are noisy, or say less than they seem to."""
    if predicted := predicted_text(in_order(trial.measurements)):
        yield predicted
    if noisy := [m.name for m in in_order(trial.measurements) if m.noisy]:
        yield f"Noisy: {', '.join(noisy)}. The interval stayed wider than the protocol asks for."
    if unused := storage_only(trial.policy, executed):
        yield (
            f"Storage-only: {', '.join(unused)}. The runtime computed these layers at more bits than were decided, "
            "which save no time there."
        )


def _notes_of_machine(study: StudyRecord, trial: TrialRecord, target: Target) -> list[str]:
    """What other machines would make of the artifact."""
    full = [name for name, layer in trial.policy.layers.items() if layer.weight_bits == layer.activation_bits == 8]
    if not full or not saturates(study.machine, target.runtime):
        return []
    return [
        f"Saturating: {', '.join(full)}. The processor it was measured on has no VNNI: sums of 8-bit products overflow in "
        f"{target.runtime}'s kernels there. On processors with VNNI the outputs differ, and so may the accuracy."
    ]


def _tensor(info: TensorInfo) -> dict[str, Any]:
    axes = {"axes": {str(axis): name for axis, name in info.axes.items()}} if info.axes else {}
    return {"name": info.name, "shape": list(info.shape), "dtype": info.dtype, **axes}


def _shapes(target: Mapping[str, Any]) -> str:
    """Which shapes latency was timed at, where the target names some."""
    named = [Shape.model_validate(each) for each in target.get("shapes") or ()]
    if len(named) == 1:
        return f" Latency is at {named[0].name}."
    said = ", ".join(f"{shape.name} (weight {shape.weight:g})" for shape in named)
    return f" Latency is the weighted mean over {said}; each of them has rows of its own, in brackets." if named else ""


def _file(card: Mapping[str, Any], stem: str) -> str:
    return next(name for name in card["files"] if name.startswith(f"{stem}."))


def _summary(card: Mapping[str, Any]) -> str:
    """One sentence: what was compressed, and what it gained and lost."""
    measured, baseline = card["measurements"], card["baseline"]["measurements"]
    size, original = (of["artifact_bytes"]["value"] for of in (measured, baseline))
    return (
        f"{card['provenance']['workload']}, compressed for {card['target']['name']}: "
        f"{_short(measured, 'speedup')} as fast as the uncompressed model ({card['reference']['name']}), "
        f"{short_text(size, 'bytes')} instead of "
        f"{short_text(original, 'bytes')}, accuracy {_short(measured, 'accuracy')} instead of "
        f"{_short(baseline, 'accuracy')} on the search-validation split, in {card['metric']['metric']}."
    )


def _short(measured: Mapping[str, Any], name: str) -> str:
    return short_text(measured[name]["value"], measured[name]["unit"])


def _measured_table(card: Mapping[str, Any]) -> str:
    baseline = card["baseline"]["measurements"]
    rows = []
    for name, document in card["measurements"].items():
        m = Measurement(name, **document)
        original = full_text(baseline[name]["value"], m.unit) if name in baseline else ""
        rows.append(
            (
                name,
                full_text(m.value, m.unit),
                " to ".join(filter(None, bounds_text(m))),
                original,
                m.unit,
                str(m.n),
                m.method,
            )
        )
    return _table(("measurement", "this model", "interval", "uncompressed", "unit", "n", "method"), rows)


def _decisions(policy: Policy, executed: Mapping[str, str]) -> list[str]:
    parts = []
    if channels := channel_rows(policy):
        parts.append(_table(("channel group", "removed", "kept, width included"), channels))
    if layers := layer_rows(policy, executed):
        parts.append(_table(("layer", "weight bits", "activation bits", "sparsity", "ran in"), layers))
    parts.append("Layers not listed keep full precision and density." if layers else "No layer is quantized or masked.")
    return parts


def _how_to_run(card: Mapping[str, Any]) -> list[str]:
    """Paragraphs on run.py, and on running the model without it."""
    runtime = card["target"]["runtime"]
    if (loader := loader_of(runtime)) is None:
        return [f"Runtime {runtime} names no function that loads its artifacts elsewhere; there is no run.py."]
    entry = RUNTIMES[runtime]
    plainly = [entry.plainly] if entry.plainly else []
    return [
        f"`python run.py` runs `{_file(card, 'model')}` as it was measured, and times it against "
        f"`{_file(card, 'reference')}`, the uncompressed model. Without it, numpy and {entry.package or runtime} are enough:",
        _example(card, loader),
        *plainly,
    ]


def _example(card: Mapping[str, Any], loader: Callable[..., Any]) -> str:
    """The lines that run the model: the very loader of run.py with what it calls, and its use."""
    target = card["target"]
    called = [loader.__globals__.get(name) for name in loader.__code__.co_names]
    inside = [each for each in called if inspect.isfunction(each) and each.__module__ == loader.__module__]
    source = "\n\n".join(inspect.getsource(function).replace(" -> Run:", ":") for function in (*inside, loader))
    given = "".join(f"    {_zeros(tensor)},\n" for tensor in card["inputs"])
    made = ", ".join(f"{tensor['name']} {tensor['shape']}" for tensor in card["outputs"])
    use = (
        f'run = {loader.__name__}("{_file(card, "model")}", threads={target["threads"]})\n'
        f"inputs = {{  # put yours here\n{given}}}\n"
        f"outputs = run(inputs)  # by name: {made}; copy what you keep, the next call reuses it\n"
    )
    imports = "from typing import Any\n\nimport numpy as np" if "Any" in source else "import numpy as np"
    return f"```python\n{imports}\n\nArrays = dict[str, np.ndarray]\n\n\n{_PYRIGHT.sub('', source)}\n\n{use}```"


def _zeros(tensor: Mapping[str, Any]) -> str:
    """An entry of the inputs, in Python."""
    return f'"{tensor["name"]}": np.zeros({tensor["shape"]}, dtype=np.{tensor["dtype"]})'


def _bullets(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {_inline(value)}" for name, value in values.items())


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value)) or "none"
    return "not recorded" if value is None else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
