"""The scores of each sample of the test split, of the reference and of the front's points: what comparisons pair by sample."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...core.measurement import Measurement
from ...evaluators.scores import Scores
from ...evaluators.tallies import Tallied
from ..store.store import Store
from .study_files import StudyFiles

TEST_SAMPLES = "test_samples"
"""The kind of the file of a trial, or of the reference, that holds its sample scores: a result, kept as long as the trial."""

FILE = f"{TEST_SAMPLES}.safetensors"


def keep_samples(files: StudyFiles, number: int | None, scores: Scores, folder: Path) -> None:
    """Keep what is known of each sample: whether it is a hit and its damage; of a metric without hits its bootstrap resamples.

    Args:
        number: of the trial; None for the reference.
        folder: for the file before it is in the study's store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metric, tensors = scores.metric, {"resampled": torch.tensor(scores.metric.resampled)}
    if metric.hits is not None:
        tensors["hits"] = torch.tensor(metric.hits, dtype=torch.uint8)
    if scores.damage is not None:
        tensors["damage"] = scores.damage.float()
    said = {"n": str(scores.n), "value": repr(metric.value), "method": metric.method, "sign": str(scores.sign)}
    save_file(tensors, path := folder / FILE, metadata=said)
    content = path.read_bytes()
    files.put(number, TEST_SAMPLES, path, hashlib.sha256(content).hexdigest(), len(content), take=True)


def sample_scores(files: StudyFiles, number: int | None) -> Scores | None:
    """The sample scores of a trial, or of the reference where `number` is None; None where none were kept."""
    path = files.found(number, TEST_SAMPLES)
    if path is None:
        return None
    with safe_open(path, "pt") as file:
        said, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.offset_keys()}
    hits = tensors["hits"].double().numpy() if "hits" in tensors else None
    metric = Tallied(float(said["value"]), said["method"], hits, tensors["resampled"].numpy())
    damage = tensors["damage"].double() if "damage" in tensors else None
    return Scores(int(said["n"]), metric, int(said["sign"]), damage=damage)


def paired_drop(store: Store, study: str, trial: int, other: int) -> Measurement | None:
    """How much worse a trial is than another on the test split, sample by sample, with its paired 95 % interval; in the unit of the
    study's metric. None where the scores of one were not kept, or are of other samples."""
    files = StudyFiles(store, study)
    one, two = sample_scores(files, trial), sample_scores(files, other)
    if one is None or two is None or one.n != two.n or one.metric.method != two.metric.method:
        return None
    unit = store.get_study(study).quality.unit
    return Measurement("test_accuracy_drop", *_reordered(one.drop_from(two), unit, one.n))


def _reordered(drop: tuple[float, float, float, str], unit: str, n: int) -> tuple[float, float, float, str, int, str]:
    value, low, high, method = drop
    return value, low, high, unit, n, method
