"""Who teaches a student: the uncompressed model, or an ensemble it leads; what they say of fixed data is computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..workloads.load import load_workload
from ..workloads.workload import MapDataset, Workload
from .distil import Tap
from .taps import tapped_modules, tapping

BATCH = 256


class Teacher:
    """Models whose mean probabilities are taught; the first one's taps too.

    Args:
        workload: its model comes first.
        others: workloads whose models join it (Hinton et al. 2015, arXiv:1503.02531, section 5, on ensembles), all of
            them of the same classes and inputs.

    Raises:
        WorkloadError: one of `others` cannot be loaded.
    """

    def __init__(self, workload: Workload, others: Sequence[str], tap: Tap | None) -> None:
        self.others = tuple(others)
        self.tap: Tap | None = tap
        device = workload.example_input.device
        self.models = [workload.model.eval(), *(load_workload(name).model.to(device).eval() for name in others)]
        self.modules = tapped_modules(workload.model, workload.example_input, tap)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """Outputs [batch, classes], then what the taps saw."""
        with tapping(self.models[0], self.modules, self.tap) as views:
            outputs = [model(inputs) for model in self.models]
            return [outputs[0] if len(outputs) == 1 else _mean_probabilities(outputs), *views]

    def beside(self, data: MapDataset) -> MapDataset:
        """`data` with what this teacher says of each sample beside it, where it is the same every time it is read.

        A data set that is not plain tensors may augment its samples: it is returned as it is, and so is any whose maps
        are asked for, which would not fit into memory.
        """
        if type(data) is not TensorDataset or len(data.tensors) != 2 or self.tap == "maps":
            return data
        said = _SAID.setdefault(self.models[0], {})
        key = (id(data), self.others, self.tap)
        if key not in said:
            device = next(self.models[0].parameters()).device
            parts = [self(inputs.to(device)) for inputs in data.tensors[0].split(BATCH)]
            # The data set is kept too, so that no other one gets its id.
            said[key] = (
                data,
                TensorDataset(*data.tensors, *(torch.cat(part).cpu() for part in zip(*parts, strict=True))),
            )
        return said[key][1]


_SAID: WeakKeyDictionary[nn.Module, dict[tuple, tuple[TensorDataset, TensorDataset]]] = WeakKeyDictionary()
"""First teacher -> (data set, other teachers, tap) -> the data set, and with what was said of it."""


def _mean_probabilities(outputs: Sequence[Tensor]) -> Tensor:
    """Logits of the mean of the models' probabilities."""
    return torch.stack([output.log_softmax(dim=-1) for output in outputs]).logsumexp(dim=0) - math.log(len(outputs))
