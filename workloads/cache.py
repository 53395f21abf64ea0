"""Trained weights on disk: trained once, shared by all processes of a user, never trusted blindly."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.defaults import cache_folder
from ..core.errors import WorkloadError

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
"""A model's parameters and buffers by name, as `Module.state_dict` gives them."""

DIGEST = "sha256"
"""The key of the file's metadata with the `state_digest` of its tensors."""


def state_digest(state: Mapping[str, object]) -> str:
    """SHA-256 (hex) of a state's tensors: names, types, shapes and bytes, whatever their order, device or strides."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {flat.dtype} {list(tensor.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trained_once(file_name: str, train: Callable[[], State]) -> State:
    """The weights in a file of the cache, which is trained and written first if it is missing or corrupt.

    Safe when several processes ask at once: one of them trains, the others wait for its file. A file that is there can
    be read from a cache that cannot be written.

    Args:
        file_name: name within the cache's `weights` folder; it has to change whenever `train` would give other weights.
        train: makes the weights, on the CPU.

    Raises:
        WorkloadError: the cache cannot be read or written.
    """
    file = cache_folder() / "weights" / file_name
    try:
        state = _read(file)
        return state if state is not None else _train_locked(file, train)
    except OSError as error:
        raise WorkloadError(
            f"cannot use the cache file {file} ({error}); set SLIMFRONT_CACHE to a folder that can be written"
        ) from error


def _train_locked(file: Path, train: Callable[[], State]) -> State:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        state = _read(file)  # another process may have written it while this one waited
        if state is None:
            if file.exists():
                logger.warning("%s is corrupt; training it again", file)
            state = train()
            _write(file, state)
    return state


def _read(file: Path) -> State | None:
    """The tensors of a file; None where it is missing, cut off, or not what was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
            metadata = opened.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    return state if metadata.get(DIGEST) == state_digest(state) else None


def _write(file: Path, state: State) -> None:
    """Write to a temporary file and move it into place: a reader sees all of it or none. The caller holds the lock."""
    unfinished = file.with_suffix(".unfinished")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(state, unfinished, metadata={DIGEST: state_digest(state)})
    os.replace(unfinished, file)
