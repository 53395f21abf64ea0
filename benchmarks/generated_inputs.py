"""Generated study files, target cards, policies, bundles and names: each is taken or refused in one line, at once.

    python benchmarks/generated_inputs.py --number 20000

Every input is a good one with something spoilt: a value, a key, some characters, a file. It counts as failed when reading it
raises anything but an error of the user's, when the message is longer than a few lines of a terminal, or when it takes over
five seconds of the processor. The same seed makes the same inputs; the exit code is 1 when any failed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper, save
from slimfront.compression.packing.packed_file import packed_bytes, save_packed
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.core.errors import TargetError, UserError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.bundles.bundle import open_bundle
from slimfront.studies.bundles.verify import verify_bundle
from slimfront.studies.study_file.load import load_study
from slimfront.workloads.load import load_workload
from torch import nn
from torch.utils.data import TensorDataset

SECONDS = 5.0
LONGEST_MESSAGE = 800

STUDY: dict[str, Any] = {
    "study": "tiny", "workload": "digits", "workload_options": {"depth": 3, "names": ["a", "b"]}, "target": "cpu-openvino",
    "objectives": ["accuracy_drop", "latency_ms"], "constraints": ["accuracy_drop <= 0.05"], "seed": 3, "workers": 0,
    "budget": {"trials": 10, "timeout_s": 60, "patience": 5}, "sampler": "policy", "rungs": {"recovery": [0, 0.25, 1]},
    "space": {
        "preset": "none", "granularity": "layer", "weight_bits": [4, 8, 32], "activation_bits": [8, 32],
        "weight_sparsity": [0, 0.5, "2:4", "<0.5std"], "operators": ["dense", "rank=0.25"], "keep": ["stem.*"],
        "recovery_epochs": [0, 1], "channel_sparsity": [0, 0.5], "width": [0.5, 1.0],
    },
    "recovery": {"learning_rate": 0.02, "steps": ["prune", "train"], "teachers": ["digits"], "batch_size": 64},
    "quantization": {"calibration": "mse"},
}  # fmt: skip

TARGET: dict[str, Any] = {
    "name": "mine", "runtime": "torch", "threads": 2, "streams": 1, "batch": 1, "weight_bits": [4, 8, 32],
    "activation_bits": [8, 32], "options": {"compile": True}, "note": "of a desk", "predict": True,
    "measured": {
        "measured_at": "2026-01-01T00:00:00", "machine": {"cpu": "abacus", "flags": ["avx2"]}, "versions": {"torch": "2"},
        "memory_gb_per_s": 10.0, "dispatch_us": 1.5, "reference_ms": {"resnet18": 3.0}, "left_out": [],
        "kernels": [{"operation": "conv2d", "weight_bits": 8, "activation_bits": 8, "executed": "i8"}],
        "throughput": [
            {"operation": "linear", "weight_bits": 8, "activation_bits": 8, "gmac_per_s": 9.0, "low": 8.0, "high": 10.0,
             "noisy": False}
        ],
    },
    "latency_table": {
        "model": ["stem"], "costs": {"stem.i8": 0.1}, "reference_ms": 1.0, "error": 0.1, "error_95": 0.2, "policies": 20,
    },
}  # fmt: skip

POLICY: dict[str, Any] = {
    "schema": 1, "width": 0.5, "channels": {"conv": 0.25}, "removed_blocks": ["blocks.3"],
    "layers": {"fc": {"weight_bits": 4, "activation_bits": 8, "sparsity": "2:4"}, "conv": {"operator": "rank=0.25"}},
    "recovery": {"epochs": 2, "learning_rate": 0.01, "steps": ["prune", "train"], "teachers": ["digits"]},
    "pruning": {"criterion": "taylor", "steps": 4}, "scheme": {"calibration": "mse"},
}  # fmt: skip

SPOILT_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 10**99, -(10**99), 10**400, 0.1, -0.0, 1e308, float("nan"), float("inf"), "", " ", "x" * 5000,
    "\0", "\ud800", "é\u202e", ".", "..", "../x", "/etc/passwd", "a/b", "a:b", "1", "{}", "{0.__class__}", "%s", "[red]x[/red]",
    [], {}, [[]], [None], {"": None}, {"a" * 5000: 1}, {"schema": None}, list(range(3000)), [0] * 3000, ["x" * 200] * 500,
    {str(n): n for n in range(2000)}, "<9e999std", "rank=nan", "rank=" + "9" * 400, "2:4", 5e-324,
)  # fmt: skip

SPOILT_YAML = (
    "2026-99-99", "!!int x", "!!bool x", "!!float x", "!!timestamp x", "!!int ''", "0x_", "0b_", "0o_", "9" * 5000,
    "0x" + "f" * 5000, '"\\U99999999"', '"\\ud800"', "[" * 20_000, "{a: " * 20_000, "- " * 20_000, "&a [*a]", "*nothing",
    "!!binary é", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "? [a]\n: b", "{<<: 3}", "{<<: [1, 2]}", "=", "<<",
    "!!python/object:os.system x", "!<tag:yaml.org,2002:int> ''", "%YAML 9.9\n---\n", "\ufeff", "\x07", "1:2:3:4:5",
    "1:" * 3000 + "1", "1e999", ".nan", "!!null x", "!!str [a]", "!!map 3", "2001-12-14t21:59:43.10-99:99", "~", "'", '"',
    "|\n  x", ">-9\n x", "@x", "`", "- - - -", "a: b: c", "--- a\n--- b", "#", "!", "!!", "& a", "*",
)  # fmt: skip

SPOILT_TEXT = (
    "[" * 100_000, '{"a":' * 50_000, "9" * 5000, "-", "1e999", "NaN", "Infinity", '"\\ud800"', '"\\', "\x00", "]", "}", ",", ":",
    '"', "null", "[]", "{}", '{"schema": null}', '"' * 1001, "\\" * 1001,
)  # fmt: skip


def doubling(times: int) -> str:
    """YAML whose last value is 2 ** times values once its aliases are written out."""
    lines = ["&a0 [x, x]", *(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, times))]
    return f"[{', '.join(lines)}]"


def spoilt_document(good: dict[str, Any], chance: random.Random) -> Any:
    """A copy of `good` with one to three values or keys replaced, removed, added or moved."""
    document = copy.deepcopy(good)
    for _ in range(chance.randint(1, 3)):
        holders = list(_containers(document))
        if not holders:
            return document
        holder = chance.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        what = chance.randrange(5)
        if not keys or what == 0:
            _add(holder, chance)
        elif what == 1:
            del holder[chance.choice(keys)]
        else:
            holder[chance.choice(keys)] = copy.deepcopy(chance.choice(SPOILT_VALUES))
    return chance.choice(SPOILT_VALUES) if chance.random() < 0.02 else document


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _containers(part)


def _add(holder: Any, chance: random.Random) -> None:
    value = copy.deepcopy(chance.choice(SPOILT_VALUES))
    if isinstance(holder, list):
        holder.insert(chance.randint(0, len(holder)), value)
    else:
        key = chance.choice(("extra", "weight_bit", "schema", "", "x" * 5000, "a.b", "[key]", *holder))
        holder[f"{key}{chance.choice(('', '2'))}"] = value


def spoilt_text(text: str, tokens: tuple[str, ...], chance: random.Random) -> str:
    """`text` with a value's place taken by one of `tokens`, or a piece cut out, doubled or put elsewhere."""
    at, length = chance.randrange(len(text) + 1), chance.choice((0, 1, 1, 5, 40, len(text)))
    what = chance.randrange(4)
    if what == 0:
        return text[:at] + chance.choice(tokens) + text[at + length :]
    if what == 1:
        places = [index + 1 for index, character in enumerate(text) if character in ":,["]
        place = chance.choice(places or [0])
        ends = [text.find(end, place) for end in ("\n", ",", "]", "}") if text.find(end, place) >= 0]
        return f"{text[:place]} {chance.choice(tokens)}{text[min(ends, default=len(text)) :]}"
    if what == 2:
        return text[:at] + text[at + length :]
    return text[:at] + text[at : at + length] * 2 + text[at:]


def yaml_of(good: dict[str, Any], chance: random.Random) -> bytes:
    """A study file or target card, spoilt by its values or by its characters."""
    if chance.random() < 0.5:
        return yaml.safe_dump(_without_surrogates(spoilt_document(good, chance)), sort_keys=False).encode()
    tokens = (*SPOILT_YAML, doubling(30), "[" + "0," * 750_000 + "0]") if chance.random() < 0.1 else SPOILT_YAML
    return spoilt_text(yaml.safe_dump(good, sort_keys=False), tokens, chance).encode("utf-8", "surrogatepass")


def _without_surrogates(value: Any) -> Any:
    """For libyaml's files are UTF-8, which cannot hold them."""
    return json.loads(json.dumps(value).replace("\\ud800", "?"))


def json_of(good: dict[str, Any], chance: random.Random) -> str:
    """A policy or a card of a bundle, spoilt as above."""
    if chance.random() < 0.5:
        return json.dumps(spoilt_document(good, chance))
    return spoilt_text(json.dumps(good), SPOILT_TEXT, chance)


class Inputs:
    """Makes inputs of each kind in a folder and reads them as the commands do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.card = write_bundle(self.bundle)
        self.kinds: dict[str, Callable[[random.Random], None]] = {
            "study file": self.study_file, "target card": self.target_card, "policy": self.policy, "bundle": self.a_bundle,
            "name": self.name,
        }  # fmt: skip

    def study_file(self, chance: random.Random) -> None:
        path = self.folder / "study.yaml"
        path.write_bytes(yaml_of(STUDY, chance))
        spec = load_study(str(path))
        load_target(spec.target, spec.base_folder)

    def target_card(self, chance: random.Random) -> None:
        path = self.folder / "target.yaml"
        path.write_bytes(yaml_of(TARGET, chance))
        load_target(str(path))

    def policy(self, chance: random.Random) -> None:
        assert Policy.from_json(json_of(POLICY, chance)).digest

    def a_bundle(self, chance: random.Random) -> None:
        spoilt = self.folder / "spoilt"
        shutil.rmtree(spoilt, ignore_errors=True)
        shutil.copytree(self.bundle, spoilt)
        if chance.random() < 0.6:
            (spoilt / "card.json").write_bytes(json_of(self.card, chance).encode("utf-8", "surrogatepass"))
        else:
            spoil_file(spoilt / chance.choice(sorted(self.card["files"])), chance)
            if chance.random() < 0.5:
                (spoilt / "card.json").write_text(json.dumps(listing(self.card, spoilt)))
        list(verify_bundle(spoilt, _nobody_times))

    def name(self, chance: random.Random) -> None:
        """A study, target, workload or bundle that is not there, whatever it is called."""
        known = (
            "digits-dem",
            "cpu-openvin",
            "nowhere.py:workload",
            "no.module:function",
            "~nobody/x.py:f",
            "torchvision:x",
        )
        texts = [value for value in (*SPOILT_VALUES, *SPOILT_YAML, *SPOILT_TEXT, *known) if isinstance(value, str)]
        text = (
            spoilt_text(chance.choice(texts) + "?", tuple(texts), chance)
            if chance.random() < 0.5
            else chance.choice(texts)
        )
        readers: tuple[Callable[[str], object], ...] = (
            load_study, load_target, load_workload, lambda path: open_bundle(Path(path)),
        )  # fmt: skip
        chance.choice(readers)(text)


def _nobody_times(*_: object) -> Any:
    raise TargetError("nothing is timed here")


def spoil_file(path: Path, chance: random.Random) -> None:
    """Cut or change a file, or put a link, a pipe, a folder or nothing in its place."""
    content, what = path.read_bytes(), chance.randrange(8)
    if what == 0:
        path.write_bytes(content[: chance.randrange(len(content))])
    elif what < 4:
        places = [chance.randrange(len(content)) for _ in range(chance.choice((1, 1, 8)))]
        path.write_bytes(bytes(chance.randrange(256) if n in places else byte for n, byte in enumerate(content)))
    elif what == 4 and path.suffix == ".safetensors":
        text = spoilt_text(content.decode("latin-1"), (*SPOILT_TEXT, "10", "-1", "999999999999", "csr"), chance)
        path.write_bytes(text.encode("utf-8", "replace"))
    else:
        path.unlink()
        if what == 5:
            path.symlink_to("/etc/passwd")
        elif what == 6:
            os.mkfifo(path)
        elif what == 7:
            path.mkdir()


def listing(card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`card` with the digests of the files as they are now."""
    regular = [name for name in card["files"] if (folder / name).is_file() and not (folder / name).is_symlink()]
    return {**card, "files": {**card["files"], **{name: _about(folder / name) for name in regular}}}


def _about(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def write_bundle(folder: Path, runtime: str = "openvino") -> dict[str, Any]:
    """A bundle of two convolutions in `folder`, smaller than any real one but whole; returns its card."""
    folder.mkdir(parents=True)
    for stem, classes in (("model", 2), ("reference", 4)):
        write_convolution(folder / f"{stem}.onnx", classes)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    policy = Policy(layers={"0": LayerPolicy(4, 32), "2": LayerPolicy(3, 32)})
    inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_packed(
        make_candidate(model, inputs[:1], policy, TensorDataset(inputs, torch.zeros(4))), folder / "packed.safetensors"
    )
    (folder / "policy.json").write_text(policy.to_json())
    value = {"low": 0.9, "high": 1.1, "unit": "ratio", "n": 3, "method": "paired", "noisy": False}
    card = {
        "schema": 1, "study": "tiny", "trial": 0, "policy_digest": policy.digest, "state": "complete", "notes": [],
        "measurements": {
            "accuracy": {**value, "value": 0.9}, "speedup": {**value, "value": 2.0},
            "artifact_bytes": {**value, "value": (folder / "model.onnx").stat().st_size},
            "packed_bytes": {**value, "value": packed_bytes(folder / "packed.safetensors")},
        },
        "target": {"name": "here", "runtime": runtime, "weight_bits": [4, 32], "activation_bits": [32]},
        "input": {"name": "input", "shape": [1, 3, 8, 8], "dtype": "float32"}, "output": {},
        "provenance": {"workload": "digits", "workload_options": {}, "workload_fingerprint": "0" * 64, "seed": 0},
        "files": {path.name: _about(path) for path in sorted(folder.iterdir())},
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))
    return card


def write_convolution(path: Path, classes: int) -> None:
    """An ONNX file of one convolution, from inputs [1, 3, 8, 8] to outputs [1, classes]."""
    weight = np.random.default_rng(0).standard_normal((classes, 3, 3, 3), dtype=np.float32)
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])
    made = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, classes])
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["channels"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["channels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "conv", [given], [made], [numpy_helper.from_array(weight, "weight")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def problem_with(read: Callable[[random.Random], None], chance: random.Random) -> tuple[str | None, bool]:
    """What is wrong with how one input was answered, if anything; and whether it was refused."""
    start, refused = time.process_time(), False
    try:
        read(chance)
    except UserError as error:
        refused = True
        if len(str(error)) > LONGEST_MESSAGE or "\n" in str(error):
            return f"a message of {len(str(error)):,} characters: {str(error)[:300]!r}", refused
    except Exception:  # whatever is no line for a person is what this looks for
        return traceback.format_exc(), refused
    seconds = time.process_time() - start
    return (f"took {seconds:.1f} s" if seconds > SECONDS else None), refused


def answers(number: int, seed: int, only: str | None = None) -> Iterator[tuple[str, int, str | None, bool]]:
    """(kind, its seed, problem, refused) of each of `number` inputs, as many of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = Inputs(Path(folder)).kinds
        kinds = {kind: read for kind, read in kinds.items() if only in (None, kind)}
        for index in range(number):
            kind = list(kinds)[index % len(kinds)]
            yield kind, seed + index, *problem_with(kinds[kind], random.Random(seed + index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="study file, target card, policy, bundle or name; all by default")
    parser.add_argument("--show", type=int, default=10, help="problems to print")
    options = parser.parse_args()
    made, refused, failed = Counter(), Counter(), Counter()
    for kind, seed, problem, was_refused in answers(options.number, options.seed, options.kind):
        made[kind] += 1
        refused[kind] += was_refused
        if problem is not None:
            failed[kind] += 1
            if failed.total() <= options.show:
                print(f"--- {kind}, seed {seed}\n{problem}", file=sys.stderr)
    for kind, count in made.items():
        print(f"{kind}: {count:,} inputs, {refused[kind]:,} refused in one line, {failed[kind]:,} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
