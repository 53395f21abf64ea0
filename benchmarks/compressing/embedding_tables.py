"""Embeddings' tables on 8 and 4 bits: bytes, memory, time and the metric, side by side.

    python benchmarks/compressing/embedding_tables.py --quick
    python benchmarks/compressing/embedding_tables.py --workload FOLDER/sentiment.py:workload --json FILE

Without a workload, a BERT of MiniLM's size with random weights says which of its outputs is largest, and the metric is how often the
compressed one says the same. Each policy is lowered for OpenVINO, in its default precision, and for ONNX Runtime. Each artifact runs in
turn with that of the uncompressed model, and the median of the paired ratios is the speed-up. Memory is by how much loading a file and
running it once makes a fresh process grow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from slimfront.compression.batches import arrays_of
from slimfront.compression.packing.packed_file import counted_bytes
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.evaluators.accuracy import score
from slimfront.evaluators.agreement import Agreement
from slimfront.evaluators.evaluator import Context
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import Session, get_runtime
from slimfront.spaces.models.layers import find_every_layer
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.layer_policy import LayerPolicy
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.load import adopt_workload, load_workload
from slimfront.workloads.workload import MapDataset, Workload
from torch.utils.data import Dataset

RUNTIMES = ("openvino", "onnxruntime")
ROUNDS, QUICK_ROUNDS = 300, 40
LENGTH = 32


@dataclass(frozen=True)
class Row:
    """What one policy makes of the model on one runtime; milliseconds, bytes, and the speed-up over the uncompressed file."""

    policy: str
    runtime: str
    metric: float
    file_bytes: int
    packed_bytes: int
    resident_bytes: int
    milliseconds: float
    speedup: float


class _Sentences(Dataset):
    """Random token ids, all of them read, with the class that a model finds."""

    def __init__(self, count: int, vocabulary: int, seed: int) -> None:
        self.ids = torch.randint(vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
        self.classes = torch.zeros(count, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": torch.ones_like(self.ids[index])}, self.classes[index]


def untrained() -> Workload:
    """A BERT of MiniLM's size (22.7 million parameters, 30,522 words of 384 numbers), and what it says of random words."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(num_labels=4, **sizes)).eval()
    splits = [_Sentences(count, model.config.vocab_size, seed) for seed, count in enumerate((32, 32, 64, 200))]
    with torch.no_grad():
        for split in splits:
            split.classes = model(input_ids=split.ids).logits.argmax(-1)
    example = {name: tensor[None] for name, tensor in splits[0][0][0].items()}
    return Workload(model, *splits, example_inputs=example, outputs=["logits"])


def policies(workload: Workload) -> dict[str, Policy]:
    """What is compared, by name."""
    layers = find_every_layer(workload.model, workload.example_input)
    tables = [layer.name for layer in layers if layer.is_embedding]
    integers = {layer.name: LayerPolicy(8, 8) for layer in layers if layer.is_product}
    return {
        f"{layers}, tables {bits}": Policy(embeddings=dict.fromkeys(tables, bits), layers=decided)
        for layers, decided in (("float", {}), ("int8", integers))
        for bits in (32, 8, 4)
    }


def rows(workload: Workload, quick: bool, folder: Path) -> Iterator[Row]:
    """A row for each policy and runtime; a quick one scores the validation split, not the test split."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    data = workload.validation if quick else workload.test
    references: dict[str, Session] = {}
    inputs = arrays_of(workload.example_input)
    for name, policy in policies(workload).items():
        candidate = make_candidate(workload.model, workload.example_input, policy, workload.calibration)
        for runtime in RUNTIMES:
            held = replace(candidate, policy=replace(policy, float_precision=_default(runtime)))
            path = folder / f"{len(references)}-{name}-{runtime}.onnx".replace(" ", "")
            metric = _scored(workload, data, held, runtime, path)
            session = get_runtime(runtime).load(path, load_target(f"cpu-{runtime}"), threads=1)
            milliseconds, ratio = paired(session, references.setdefault(runtime, session), inputs, rounds)
            size, resident = path.stat().st_size, _resident(runtime, path)
            yield Row(name, runtime, metric, size, counted_bytes(held), resident, milliseconds, 1 / ratio)


def _default(runtime: str) -> str:
    return "default" if runtime == "openvino" else "float32"


def _scored(workload: Workload, data: MapDataset, candidate: Candidate, runtime: str, path: Path) -> float:
    """Lower `candidate` to `path`; its metric on `data`."""
    target = load_target(f"cpu-{runtime}")
    context = Context(workload, target, get_runtime(runtime), threads=1)
    artifact = context.runtime.lower(candidate, workload.example_input, target, path)
    return score(artifact, data, context, agreement=Agreement.of(candidate, context)).value


def paired(first: Session, second: Session, inputs: Mapping[str, np.ndarray], rounds: int) -> tuple[float, float]:
    """Milliseconds of `first`, and the median of the ratios first / second of runs in turn, each as often the first of its pair."""
    times = []
    for number in range(rounds):
        pair = [_seconds(session, inputs) for session in ((first, second) if number % 2 else (second, first))]
        times.append(pair if number % 2 else pair[::-1])
    kept = np.array(times)[rounds // 10 :]
    return float(np.median(kept[:, 0])) * 1e3, float(np.median(kept[:, 0] / kept[:, 1]))


def _seconds(session: Session, inputs: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(inputs)
    return time.perf_counter() - start


def _resident(runtime: str, path: Path) -> int:
    command = [sys.executable, __file__, "--loaded", str(path), "--runtime", runtime]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def loaded(path: Path, runtime: str) -> int:
    """By how many bytes this process grows where it loads a file and runs it once."""
    own, target = get_runtime(runtime), load_target(f"cpu-{runtime}")
    inputs = {each.name: np.ones(each.shape, np.dtype(each.dtype)) for each in own.signature(path).inputs}
    before = _resident_now()
    session = own.load(path, target, threads=1)
    session.run(inputs)
    return _resident_now() - before


def _resident_now() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", help="FILE:function; its own folder is the working directory")
    parser.add_argument("--quick", action="store_true", help="fewer runs of each file, fewer samples")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--loaded", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--runtime", choices=RUNTIMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loaded:
        print(loaded(options.loaded, options.runtime))
        return
    torch.set_num_threads(1)
    if options.workload:
        workload = load_workload(options.workload, {}, Path.cwd())
    else:
        workload = adopt_workload(untrained(), "untrained", Path.cwd())
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(workload, options.quick, Path(folder)):
            found.append(row)
            print(
                f"| {row.policy} | {row.runtime} | {row.metric:.4f} | {row.file_bytes / 1e6:.1f} MB | {row.packed_bytes / 1e6:.1f} MB | "
                f"{row.resident_bytes / 1e6:.0f} MB | {row.milliseconds:.3f} ms | {row.speedup:.2f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
