"""A model's parameters and buffers for a file: every tensor once, however many modules have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def distinct_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that the state of a model holds; of one with several names, as of a layer at two places, the first."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`distinct_tensors` as a file of safetensors takes them: contiguous, and none a part of another, as a buffer may be."""
    saved: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in distinct_tensors(model):
        whole = tensor.contiguous()
        place = whole.untyped_storage().data_ptr()
        saved[name] = whole.clone() if place in storages else whole
        storages.add(place)
    return saved


def load_saved(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give a model the tensors that `saved_tensors` has of another one of the same architecture.

    Raises:
        RuntimeError: it is of another one.
    """
    own = {name for name, _ in distinct_tensors(model)}
    if own != saved.keys():
        raise RuntimeError(f"weights of another model: {sorted(own ^ saved.keys())[:3]} are in one of them only")
    model.load_state_dict(saved, strict=False)
