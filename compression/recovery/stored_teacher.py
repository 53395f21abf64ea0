"""A teacher's outputs on disk, so that it runs once for each sample and not in each epoch of each trial.

Of each output the largest logits are stored, in float16, and one more value that gives all other classes together the probability that
the teacher gives them (marginal smoothing of Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition",
arXiv:2112.01528). A student learns from this stored form also where the teacher has just run, so that its weights do not depend on what
was stored before, but for rounding.

Samples are recognised by a checksum of their inputs. Where one is another than before, as with random augmentation, the data change: what
is stored is dropped, and the teacher runs.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.batch import Batch, device_of_model, tensors_of
from ...spaces.policies.policy import Recovery
from ...workloads.copies import kept_tensors
from ...workloads.output_kind import OutputKind
from ...workloads.samples import MapDataset
from ...workloads.workload import Workload
from ..batches import CALIBRATION_BATCH, input_batches, is_identifiable
from .outputs import ONLY
from .teachers import Teacher

MOST_LOST = 0.01
"""Nats, KL(teacher || stored) at the recovery's temperature and on average over calibration samples, that leaving out logits may lose."""

FEWEST = 16
"""The fewest logits of an output that are stored."""

MOST_OF_THE_DISK = 0.5
"""The share of the free disk that outputs may take."""

SAME = 0.05
"""Mean difference of logits up to which those on disk are the teacher's: rounding, and classes that are nearly as likely."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredForm:
    """What is stored of an output [n, ...] of classes.

    Attributes:
        shape: of one sample's output.
        kept: how many logits; all where that takes no more space.
    """

    kind: OutputKind
    temperature: float
    shape: tuple[int, ...]
    kept: int

    @classmethod
    def of(cls, kind: OutputKind, temperature: float, outputs: Tensor) -> StoredForm:
        """The form with the fewest logits, from `FEWEST` doubled, that loses at most `MOST_LOST` of `outputs`."""
        shape = tuple(outputs.shape[1:])
        forms = [cls(kind, temperature, shape, kept) for kept in _doubled(kind.logits(outputs).shape[-1])]
        return next(form for form in forms if form.lost(outputs) <= MOST_LOST)

    @property
    def classes(self) -> int:
        """Of the output."""
        assert self.kind.class_axis is not None, "values have no classes"
        return self.shape[self.kind.class_axis - 1]

    @property
    def record(self) -> np.dtype:
        """Of a sample; its "checksum" is one more than that of its inputs, 0 where nothing is stored yet."""
        positions = math.prod(self.shape) // self.classes
        fields: list[tuple[Any, ...]] = [("checksum", "<u8"), ("logits", "<f2", (positions, self.kept))]
        if self.kept < self.classes:
            fields += [("classes", _index_type(self.classes), (positions, self.kept)), ("others", "<f2", (positions,))]
        return np.dtype(fields)

    def lost(self, outputs: Tensor) -> float:
        """Mean KL(outputs || what is stored of them) at the temperature, in nats."""
        if self.kept == self.classes:
            return 0.0  # but for float16's rounding
        expected, found = (
            (self.kind.logits(each).double() / self.temperature).log_softmax(-1)
            for each in (outputs, self.restored(self.shortened(outputs), outputs.device))
        )
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    def shortened(self, outputs: Tensor) -> np.ndarray:
        """Records [n] of outputs [n, ...], without their checksums."""
        records = np.zeros(len(outputs), self.record)
        logits = self.kind.logits(outputs.float())
        logits = logits - logits.max(-1, keepdim=True).values  # the precision is where the probability is
        places = records["logits"].shape
        if self.kept == self.classes:
            records["logits"] = _halves(logits, places)
            return records
        largest, classes = logits.topk(self.kept, dim=-1)
        rest = logits.scatter(-1, classes, -torch.inf) / self.temperature
        others = self.temperature * (rest.logsumexp(-1) - math.log(self.classes - self.kept))
        records["logits"], records["others"] = _halves(largest, places), _halves(others, places[:2])
        records["classes"] = classes.cpu().numpy().reshape(places)
        return records

    def restored(self, records: np.ndarray, device: torch.device) -> Tensor:
        """Outputs [n, ...] of records [n]."""
        logits = torch.from_numpy(records["logits"].astype(np.float32)).to(device)
        if self.kept < self.classes:
            others = torch.from_numpy(records["others"].astype(np.float32)).to(device).unsqueeze(-1)
            classes = torch.from_numpy(records["classes"].astype(np.int64)).to(device)
            logits = others.expand(*classes.shape[:2], self.classes).scatter(-1, classes, logits)
        outputs = logits.softmax(-1) if self.kind.are_probabilities else logits
        axis = self.kind.class_axis
        assert axis is not None, "as in `classes`"
        positions = self.shape[: axis - 1] + self.shape[axis:]
        return outputs.reshape(len(records), *positions, self.classes).movedim(-1, axis)


class StoredTeacher:
    """A teacher that runs on samples of which nothing is stored.

    Several processes may use one file: all write the same, and a record's checksum last.

    Args:
        file: of the records of all samples; None stores nothing.
    """

    def __init__(self, teacher: Teacher, form: StoredForm, file: Path | None, samples: int) -> None:
        self._teacher, self._form, self._file = teacher, form, file
        self._device, self._is_checked = device_of_model(teacher.models[0]), False
        self._records = None if file is None else _opened(file, form.record, samples)

    def __call__(self, inputs: Batch, places: Tensor) -> Tensor:
        """The outputs [n, ...] of inputs [n, ...].

        Args:
            places: (index, checksum) of each sample, shape [n, 2].
        """
        index, checksums = places[:, 0].numpy(), places[:, 1].numpy().astype(np.uint64) + 1
        stored = None if self._records is None else self._records[index]
        if stored is not None and self._is_checked and bool((stored["checksum"] == checksums).all()):
            return self._form.restored(stored, self._device)
        made = self._made(inputs)
        if stored is not None:
            self._store(stored, made, index, checksums)
        return self._form.restored(made, self._device)

    def _made(self, inputs: Batch) -> np.ndarray:
        with torch.autocast(self._device.type, enabled=False):  # what is stored serves trainings in any precision
            return self._form.shortened(self._teacher(inputs)[0])

    def _store(self, stored: np.ndarray, made: np.ndarray, index: np.ndarray, checksums: np.ndarray) -> None:
        assert self._records is not None
        known = stored["checksum"] != 0
        if bool((stored["checksum"][known] != checksums[known]).any()):
            self._drop("training data change from one epoch to the next")
        elif known.any() and self._gap(stored[known], made[known]) > SAME:
            self._drop("what is stored is of another model")
        else:
            for name in made.dtype.names or ():
                if name != "checksum":
                    self._records[name][index] = made[name]
            self._records["checksum"][index] = checksums  # last: a reader that finds it also finds the rest
            self._is_checked = True

    def _gap(self, stored: np.ndarray, made: np.ndarray) -> float:
        return float((self._form.restored(stored, self._device) - self._form.restored(made, self._device)).abs().mean())

    def _drop(self, reason: str) -> None:
        assert self._file is not None
        logger.warning("the teacher's outputs are not stored: %s; it runs on each batch", reason)
        _mark(self._file).touch()
        self._file.unlink(missing_ok=True)  # another process may have dropped it
        self._records = None


def stored_teacher(
    teacher: Teacher, workload: Workload, data: MapDataset, recovery: Recovery, folder: Path | None
) -> StoredTeacher | None:
    """The stored form of a teacher, if a recovery asks for it and there is one of these data and outputs; what there is not is logged.

    Args:
        folder: shared by the recoveries of a study; None stores nothing.
    """
    if not recovery.stored_teacher:
        return None
    if (reason := _why_not_stored(teacher, data)) is not None:
        logger.warning("the teacher's outputs are not stored: %s", reason)
        return None
    few = next(iter(input_batches(workload.calibration, CALIBRATION_BATCH, device_of_model(teacher.models[0]))))
    form = StoredForm.of(teacher.kinds.by_name[ONLY], recovery.temperature, teacher(few)[0].float())
    file = None if folder is None else folder / f"{_name(teacher, form, len(data))}.records"
    return StoredTeacher(teacher, form, _if_it_fits(file, form.record.itemsize * len(data)), len(data))


@torch.no_grad()
def most_bytes(workload: Workload, recovery: Recovery) -> int:
    """The most that a teacher's stored outputs on the training split take; 0 where none are asked for, or they are kept in memory."""
    if not recovery.stored_teacher or not is_identifiable(workload.train):
        return 0
    outputs = tensors_of(workload.model.eval()(workload.example_input))
    return len(workload.train) * (2 * sum(output.numel() for output in outputs) + 8)


def _why_not_stored(teacher: Teacher, data: MapDataset) -> str | None:
    if teacher.tap is not None:
        return "the distiller looks into the model"
    if ONLY not in teacher.kinds.by_name or teacher.kinds.by_name[ONLY].class_axis is None:
        return "they are not one output of classes"
    return (
        None
        if is_identifiable(data)
        else "the data are plain tensors, of which they are kept in memory, or collated by a function"
    )


def _if_it_fits(file: Path | None, size: int) -> Path | None:
    """The file with space for it; None where the disk has too little, or its data are known to change."""
    if file is None or _mark(file).exists():
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        system = os.statvfs(file.parent)
        free = system.f_bavail * system.f_frsize
        if not file.exists() and size > MOST_OF_THE_DISK * free:
            logger.warning("the teacher's outputs are not stored: they take %.1f GB of %.1f", size / 1e9, free / 1e9)
            return None
        with file.open("ab") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)  # a full disk is an error here, and a signal when written to
    except OSError as error:
        logger.warning("the teacher's outputs are not stored: %s", error)
        return None
    return file


def _opened(file: Path, record: np.dtype, samples: int) -> np.ndarray:
    return np.memmap(file, record, mode="r+", shape=(samples,))


def _mark(file: Path) -> Path:
    """A file that says that another one is of no use."""
    return file.with_suffix(".dropped")


def _name(teacher: Teacher, form: StoredForm, samples: int) -> str:
    """Of what is stored: it follows from the teacher's weights and the form."""
    digest = hashlib.sha256(f"{form.kind.words} {form.temperature} {form.shape} {form.kept} {samples}".encode())
    for model in teacher.models:
        for part in _content(model):
            digest.update(part)
    return digest.hexdigest()[:32]


def _content(model: nn.Module) -> Iterator[bytes | memoryview]:
    """What outputs follow from, besides the code: parameters, buffers of the state or not, tensors in plain attributes, and any other
    state of modules."""
    kept = ((str(key), tensor) for _, key, tensor in kept_tensors(model))
    for name, value in (*model.state_dict().items(), *model.named_buffers(), *kept):
        yield name.encode()
        if isinstance(value, Tensor):
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        else:  # of `get_extra_state`
            yield pickle.dumps(value)


def _doubled(classes: int) -> Iterator[int]:
    """Numbers of logits to store: from `FEWEST` doubled while they take less space than all, then all."""
    kept, index_bytes = FEWEST, np.dtype(_index_type(classes)).itemsize
    while (2 + index_bytes) * kept + 2 < 2 * classes:
        yield kept
        kept *= 2
    yield classes


def _index_type(classes: int) -> str:
    return "<u2" if classes <= 2**16 else "<u4"


def _halves(values: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return values.clamp_min(torch.finfo(torch.float16).min).half().cpu().numpy().reshape(shape)
