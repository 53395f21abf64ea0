"""timm's image classifiers as workloads: `timm:deit_tiny_patch16_224` and its like."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from ...core.errors import WorkloadError
from ...core.interrupts import raise_if_interrupted
from ..torchvision.data import SOURCES, Transform, open_splits, random_splits
from ..torchvision.models import TorchvisionOptions, load_file, validated
from ..workload import Workload, describe

PRETRAINED = "pretrained"
"""The value of `weights` that names timm's own weights."""


def timm_workload(model_name: str, base: Path, **options: Any) -> Workload:
    """A classification model of timm with a data set that torchvision knows, or with random images.

    Args:
        model_name: one of `timm.list_models()`, with a tag of weights after a dot or without.
        base: the folder that relative paths in the options start from.
        options: the fields of `TorchvisionOptions`; of `weights` the only name is "pretrained", which needs `download: true`.

    Raises:
        WorkloadError: an unknown model or option, or weights or data that are not there and may not be downloaded.
    """
    chosen = validated(options)
    _require_known(model_name)
    if chosen.weights == PRETRAINED and not chosen.download:
        raise WorkloadError(
            "weights pretrained are fetched from the internet by timm: say `download: true`, or name a file"
        )
    config = timm.get_pretrained_cfg(model_name)
    size = chosen.image_size or (config.input_size[-1] if config else 224)
    if chosen.data.name == "random":
        model = _model(model_name, chosen, chosen.data.classes, size, base)
        splits = random_splits(chosen.data, model, size, chosen.seed, untrained=chosen.weights is None)
    else:
        splits = open_splits(chosen.data, _transform(model_name, chosen, size), base, chosen.seed)
        model = _model(model_name, chosen, splits.classes, size, base)
    example = splits.train[0][0].unsqueeze(0)
    caveats = ["untrained"] * (chosen.weights is None) + ["random images"] * (chosen.data.name == "random")
    name = f"timm:{model_name}" + (f" ({', '.join(caveats)})" if caveats else "")
    return Workload(model, splits.train, splits.calibration, splits.validation, splits.test, example, name=name)


def _require_known(name: str) -> None:
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        some = difflib.get_close_matches(name, known) or ["resnet18", "deit_tiny_patch16_224", "convnext_atto"]
        raise WorkloadError(f"timm has no model {name!r}, but it has {', '.join(some)}")


def _model(name: str, chosen: TorchvisionOptions, classes: int, size: int, base: Path) -> nn.Module:
    """The model in evaluation mode.

    Raises:
        WorkloadError: it cannot be built, or its weights cannot be had.
    """
    options: dict[str, Any] = {"img_size": size} if _takes_size(name) else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(chosen.seed)
        try:
            model = timm.create_model(name, pretrained=chosen.weights == PRETRAINED, num_classes=classes, **options)
        except Exception as error:  # timm, and what it downloads with, may raise anything
            raise_if_interrupted(error)
            weights = chosen.weights or "none"
            raise WorkloadError(
                f"{name} cannot be built at {size} pixels with weights {weights}: {describe(error)}"
            ) from error
    if chosen.weights not in (None, PRETRAINED):
        load_file(model, base / Path(str(chosen.weights)).expanduser())
    return model.eval()


def _takes_size(name: str) -> bool:
    """Whether images of another size have to be announced, as of transformers whose positions are learned."""
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def _transform(name: str, chosen: TorchvisionOptions, size: int) -> Transform:
    """The data set's own transform; with pretrained weights, normalised as they were trained."""
    mean, std = chosen.data.mean, chosen.data.std
    if chosen.weights == PRETRAINED and mean is None and std is None:
        config = resolve_model_data_config(timm.create_model(name, pretrained=False))
        mean, std = config["mean"], config["std"]
    return SOURCES[chosen.data.name].transform(size, mean, std)
