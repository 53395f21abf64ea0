"""Teachers of distillation: the uncompressed model, or an ensemble with it; their outputs on fixed data are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.data import TensorDataset

from ...core.batch import Batch, device_of, device_of_model, moved, shapes_of, sizes
from ...core.errors import WorkloadError
from ...core.interrupts import raise_if_interrupted
from ...workloads.load import load_workload
from ...workloads.workload import MapDataset, Workload, describe
from .distil import Tap
from .feature_taps import tapped_modules, tapping
from .outputs import ONE_CLASSIFIER, ONLY, OutputKinds

BATCH = 256


class Teacher:
    """Models whose mean outputs, and the first one's taps, a student imitates.

    Args:
        workload: its model comes first.
        others: workloads whose models join it (Hinton et al. 2015, arXiv:1503.02531, section 5, on ensembles), all of
            them of the same outputs and inputs.
        kinds: what the outputs mean, and so how they are averaged.

    Raises:
        WorkloadError: one of `others` cannot be loaded, or does not make outputs like the workload's model of its inputs.
    """

    def __init__(
        self, workload: Workload, others: Sequence[str], tap: Tap | None, kinds: OutputKinds = ONE_CLASSIFIER
    ) -> None:
        self.others = tuple(others)
        self.tap: Tap | None = tap
        self.kinds = kinds
        self.models = [workload.model.eval(), *(_joining(workload, name) for name in others)]
        self.modules = tapped_modules(workload.model, workload.example_input, tap)

    @torch.no_grad()
    def __call__(self, inputs: Batch) -> list[Any]:
        """Outputs, then what the taps saw."""
        with tapping(self.models[0], self.modules, self.tap) as views:
            outputs: list[Batch] = [model(inputs) for model in self.models]
            return [outputs[0] if len(outputs) == 1 else self.kinds.mean(outputs), *views]

    def annotated(self, data: MapDataset) -> MapDataset:
        """`data` with this teacher's outputs added to every sample, where samples are the same every time they are read.

        A data set that is not plain tensors may augment its samples: it is returned as it is, and so is any data set if the
        tap is "maps", which would not fit into memory, and of a model of several outputs.
        """
        if (
            type(data) is not TensorDataset
            or len(data.tensors) != 2
            or self.tap == "maps"
            or ONLY not in self.kinds.by_name
        ):
            return data
        said = _SAID.setdefault(data, WeakKeyDictionary()).setdefault(self.models[0], {})
        key = self.others, self.tap
        if key not in said:
            device = device_of_model(self.models[0])
            parts = [self(moved(inputs, device)) for inputs in data.tensors[0].split(BATCH)]
            said[key] = TensorDataset(*data.tensors, *(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
        return said[key]


_Said = dict[tuple[tuple[str, ...], Tap | None], TensorDataset]
_SAID: WeakKeyDictionary[TensorDataset, WeakKeyDictionary[nn.Module, _Said]] = WeakKeyDictionary()
"""Data set -> first teacher -> (other teachers, tap) -> the annotated data set; entries live as long as both keys."""


def _joining(workload: Workload, name: str) -> nn.Module:
    """The model of the workload `name`, held against `workload`'s on the example input."""
    example = workload.example_input
    model = _loaded(name, workload.base).to(device_of(example))
    with torch.no_grad():
        expected: Batch = workload.model.eval()(example)
        try:
            found: Batch = model(example)
        except BaseException as error:  # the user's code may raise anything
            raise_if_interrupted(error)
            raise WorkloadError(f"{name} does not run on the workload's example input: {describe(error)}") from error
    if shapes_of(found) != shapes_of(expected):
        raise WorkloadError(f"{name} makes outputs {sizes(found)}, not {sizes(expected)} as the workload's model does")
    return model


@cache
def _loaded(name: str, base: Path | None) -> nn.Module:
    """The model of a workload; whatever loading it draws at random, the training it is loaded for does not notice."""
    with torch.random.fork_rng():
        return load_workload(name, base=base).model.eval()
