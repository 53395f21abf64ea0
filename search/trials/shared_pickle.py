"""Pickled objects whose large arrays and tensors lie apart, so that processes of one machine can share them."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

LEAST_BYTES = 2**16
"""Arrays and tensors of fewer bytes are copied to each process: counters and statistics, which code may change in place."""


@dataclass(frozen=True)
class SharedPickle:
    """An object as bytes; classes and functions of the main script or a notebook are in them by value.

    Attributes:
        content: all but the large arrays and tensors.
        buffers: those, bytes [n] each. Where Ray has them in its object store, what is loaded reads them there.
    """

    content: bytes
    buffers: Sequence[np.ndarray]

    @classmethod
    def of(cls, value: object) -> SharedPickle:
        """Pickle an object; raises whatever its classes do."""
        content, buffers = io.BytesIO(), []

        def stays(buffer: pickle.PickleBuffer) -> bool:
            array = np.frombuffer(buffer.raw(), np.uint8)
            if array.nbytes >= LEAST_BYTES:
                buffers.append(array)
            return array.nbytes < LEAST_BYTES

        _Pickler(content, protocol=5, buffer_callback=stays).dump(value)
        return cls(content.getvalue(), buffers)

    def load(self, copied: bool = False) -> Any:
        """The object; it must not be changed in place unless it is `copied`."""
        buffers = [bytearray(buffer) if copied else buffer for buffer in self.buffers]
        return pickle.loads(self.content, buffers=buffers)


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in (Tensor, nn.Parameter) and _is_plain(obj):
            raw = pickle.PickleBuffer(obj.detach().reshape(-1).view(torch.uint8).numpy())
            return _tensor, (raw, obj.dtype, tuple(obj.shape), type(obj) is nn.Parameter, obj.requires_grad)
        return super().reducer_override(obj)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but large numbers in a row which no other tensor is a view of."""
    is_dense = tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.is_contiguous()
    if not is_dense or tensor.is_quantized or not tensor.is_leaf or tensor.is_conj() or vars(tensor):
        return False
    return LEAST_BYTES <= tensor.nbytes == tensor.untyped_storage().nbytes()


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...], is_parameter: bool, requires_grad: bool) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor is it written to
        tensor = torch.frombuffer(raw, dtype=dtype).view(shape)
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
