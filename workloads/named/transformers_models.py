"""Folders that transformers reads as workloads: `transformers:path/to/model`, with a task. Nothing is downloaded.

The folder holds `config.json` and, if the model is trained, its weights. Data are token ids and masks in a file of numpy, or random ones that the
model itself labels, so that a metric is the agreement with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ...core.errors import WorkloadError
from ...core.interrupts import raise_if_interrupted
from ..workload import Workload, describe

Task = Literal["sequence-classification", "token-classification", "embeddings", "causal-lm"]

CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "embeddings": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
}
OUTPUTS = {"embeddings": "last_hidden_state"}
METRICS = {"sequence-classification": "top1", "embeddings": "mse"}
"""Those of the other tasks are "token_accuracy"."""

SHARES = (0.5, 0.1, 0.2, 0.2)
"""The parts of the data that are train, calibration, validation and test."""

LABELS = "labels"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class TransformersOptions(BaseModel):
    """The options of a workload from a folder of transformers.

    Attributes:
        task: what the model is used for.
        data: a .npz file with an array for each input of the model, such as input_ids and attention_mask, and one of labels; random tokens where
            it is missing.
        tokens, samples: of random data: how long, and how many.
        seed: of untrained weights, of random data and of the splits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task
    data: Path | None = None
    tokens: int = Field(default=32, ge=2)
    samples: int = Field(default=160, ge=20)
    seed: int = Field(default=0, ge=0)


class Arrays(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Inputs by name, and labels, of as many samples."""

    def __init__(self, inputs: Mapping[str, Tensor], labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {name: values[index] for name, values in self.inputs.items()}, self.labels[index]


def transformers_workload(folder: str, base: Path, **options: Any) -> Workload:
    """A model from a folder of transformers, on token ids.

    Args:
        folder: with `config.json`; a relative one starts from `base`.
        options: the fields of `TransformersOptions`.

    Raises:
        WorkloadError: no such folder, an unknown option, or data that do not fit.
    """
    chosen, place = _validated(options), base / Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise WorkloadError(f"{place / 'config.json'} was looked for, but there is no such file; nothing is downloaded")
    model, trained = _model(place, chosen)
    inputs = _random_inputs(model, chosen) if chosen.data is None else _arrays(base / chosen.data.expanduser())
    labels = inputs.pop(LABELS) if LABELS in inputs else _own_labels(model, inputs, chosen.task)
    data = Arrays(inputs, labels)
    caveats = ["untrained"] * (not trained) + ["random tokens"] * (chosen.data is None)
    return Workload(
        model,
        *_splits(data, chosen.seed),
        example_inputs={name: values[:1] for name, values in inputs.items()},
        metric=METRICS.get(chosen.task, "token_accuracy"),
        outputs=(OUTPUTS.get(chosen.task, "logits"),),
        name=f"transformers:{place.name}" + (f" ({', '.join(caveats)})" if caveats else ""),
    )


def _validated(options: Mapping[str, Any]) -> TransformersOptions:
    try:
        return TransformersOptions.model_validate(options)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        known = ", ".join(TransformersOptions.model_fields)
        raise WorkloadError(f"option {key}: {problem['msg']}; its options are: {known}") from error


def _model(place: Path, chosen: TransformersOptions) -> tuple[nn.Module, bool]:
    """The model in evaluation mode, and whether its weights were in the folder.

    Raises:
        WorkloadError: transformers cannot read the folder.
    """
    trained = any((place / name).is_file() for name in WEIGHTS)
    kind = getattr(transformers, CLASSES[chosen.task])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(chosen.seed)
        try:
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=True)
            config.use_cache = False
            options = {"config": config, "local_files_only": True}
            model = kind.from_pretrained(place, **options) if trained else kind.from_config(config)
        except Exception as error:  # the folder is the user's, and transformers raises whatever it meets
            raise_if_interrupted(error)
            raise WorkloadError(f"transformers cannot read {place} for {chosen.task}: {describe(error)}") from error
    return model.eval(), trained


def _random_inputs(model: nn.Module, chosen: TransformersOptions) -> dict[str, Tensor]:
    """Token ids, and masks that leave out some tokens at the end; none of a decoder, whose tokens read only what is before them."""
    generator = torch.Generator().manual_seed(chosen.seed)
    shape = (chosen.samples, chosen.tokens)
    config: Any = model.config
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    if chosen.task == "causal-lm":
        return {"input_ids": ids}
    lengths = torch.randint(max(2, chosen.tokens // 2), chosen.tokens + 1, (chosen.samples, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(chosen.tokens) < lengths).long()}


def _arrays(file: Path) -> dict[str, Tensor]:
    """The arrays of a .npz file, all of one length.

    Raises:
        WorkloadError: it is none, or its arrays differ in length.
    """
    if not file.is_file():
        raise WorkloadError(f"data were looked for in {file}, but there is no such file")
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (OSError, ValueError, TypeError) as error:
        raise WorkloadError(f"data {file} must be a .npz file of arrays of numbers: {describe(error)}") from error
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1 or not lengths.keys() - {LABELS}:
        raise WorkloadError(f"data {file} must hold inputs by name, and labels, of one length each, not {lengths}")
    return arrays


@torch.no_grad()
def _own_labels(model: nn.Module, inputs: Mapping[str, Tensor], task: Task) -> Tensor:
    """What the model itself says of each sample: classes, or for embeddings the embeddings."""
    found = []
    for start in range(0, len(next(iter(inputs.values()))), 16):
        outputs = model(**{name: values[start : start + 16] for name, values in inputs.items()})
        values = outputs[OUTPUTS.get(task, "logits")]
        found.append(values if task == "embeddings" else values.argmax(-1))
    return torch.cat(found)


def _splits(data: Arrays, seed: int) -> list[Subset[tuple[dict[str, Tensor], Tensor]]]:
    """Train, calibration, validation and test, by `SHARES`."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    ends = [round(sum(SHARES[: number + 1]) * len(order)) for number in range(len(SHARES))]
    return [Subset(data, order[start:end]) for start, end in pairwise([0, *ends])]
