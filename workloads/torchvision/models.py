"""torchvision's classification models as workloads: `torchvision:resnet18` and its like."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import torch
import torchvision
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn
from torchvision.models import WeightsEnum

from ...core.errors import WorkloadError
from ..workload import Workload, describe
from .data import SOURCES, DataOptions, Transform, open_splits, random_splits

DEFAULT_SIZE = 224
UNKNOWN = "extra_forbidden"  # pydantic's type of error for a key that is not there
AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")  # GoogLeNet's and Inception's, of use only while training from scratch


class TorchvisionOptions(BaseModel):
    """The options of a torchvision workload.

    Attributes:
        weights: "none", a .safetensors or .pth file with a state dict, or a name of torchvision's such as "DEFAULT".
        data: a `DataOptions`, or just its name; "random" needs no data and measures agreement with the model itself.
        image_size: side of the square images the model gets, in pixels.
        download: named weights may be fetched from the internet if they are missing.
        seed: of untrained weights, of random images and of the splits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = None
    data: DataOptions = DataOptions(name="random")
    image_size: int | None = Field(default=None, ge=8)
    download: bool = False
    seed: int = Field(default=0, ge=0)

    @field_validator("weights")
    @classmethod
    def _none_is_a_word(cls, weights: str | None) -> str | None:
        return None if weights == "none" else weights

    @field_validator("data", mode="before")
    @classmethod
    def _name_alone(cls, data: object) -> object:
        return {"name": data} if isinstance(data, str) else data


def torchvision_workload(model_name: str, base: Path, **options: Any) -> Workload:
    """A classification model of torchvision with a data set that torchvision knows, or with random images.

    The model has as many classes as the data. Inputs are float32 [3, size, size], normalised and never augmented.

    Args:
        model_name: one of `torchvision.models.list_models(module=torchvision.models)`.
        base: the folder that relative paths in the options start from.
        options: the fields of `TorchvisionOptions`.

    Raises:
        WorkloadError: an unknown model or option, or weights or data that are not there and may not be downloaded.
    """
    chosen, enum = validated(options), _weights_enum(model_name)
    named = _named_weights(chosen, enum)
    size = _image_size(chosen, named)
    if chosen.data.name == "random":
        model = _model(model_name, chosen, named, chosen.data.classes, size, base)
        splits = random_splits(chosen.data, model, size, chosen.seed, untrained=chosen.weights is None)
    else:
        splits = open_splits(chosen.data, _transform(chosen, named, size), base, chosen.seed)
        model = _model(model_name, chosen, named, splits.classes, size, base)
    example_input = splits.train[0][0].unsqueeze(0)
    name = _name(model_name, chosen)
    return Workload(model, splits.train, splits.calibration, splits.validation, splits.test, example_input, name=name)


def _weights_enum(model_name: str) -> type[WeightsEnum]:
    known = torchvision.models.list_models(module=torchvision.models)
    if model_name not in known:
        some = difflib.get_close_matches(model_name, known) or ["resnet18", "mobilenet_v2", "convnext_tiny"]
        raise WorkloadError(f"torchvision has no classification model {model_name!r}, but it has {', '.join(some)}")
    return torchvision.models.get_model_weights(model_name)


def validated(options: Mapping[str, Any]) -> TorchvisionOptions:
    """The options of a workload of images.

    Raises:
        WorkloadError: an unknown option, or a wrong value.
    """
    try:
        return TorchvisionOptions.model_validate(options)
    except ValidationError as error:
        problem = min(error.errors(), key=lambda problem: problem["type"] != UNKNOWN)  # a typo explains the others
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == UNKNOWN:
            kind = DataOptions if key.startswith("data.") else TorchvisionOptions
            raise WorkloadError(f"unknown option {key}; known are {', '.join(kind.model_fields)}") from error
        what = problem["msg"].removeprefix("Value error, ")
        raise WorkloadError(f"option {key}: {what}, not {problem['input']!r}") from error


def _named_weights(chosen: TorchvisionOptions, enum: type[WeightsEnum]) -> WeightsEnum | None:
    """The member of torchvision's weights the user means; None for no weights or a file.

    Raises:
        WorkloadError: it is neither, or the weights are not here and may not be downloaded.
    """
    if chosen.weights is None or Path(chosen.weights).suffix:
        return None
    if chosen.weights not in enum.__members__:
        names = ", ".join(enum.__members__)
        raise WorkloadError(
            f"weights must be none, a .safetensors or .pth file, or one of {names}, not {chosen.weights!r}"
        )
    named = enum[chosen.weights]
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(named.url).path).name)
    if not (chosen.download or file.is_file()):
        raise WorkloadError(
            f"weights {chosen.weights} were looked for in {file}: put them there, or say `download: true`"
        )
    return named


def _image_size(chosen: TorchvisionOptions, named: WeightsEnum | None) -> int:
    if chosen.image_size:
        return chosen.image_size
    if named:
        return named.transforms().crop_size[0]
    return SOURCES[chosen.data.name].size if chosen.data.name in SOURCES else DEFAULT_SIZE


def _transform(chosen: TorchvisionOptions, named: WeightsEnum | None, size: int) -> Transform:
    """What named weights were scored with, or else the data set's own; either way as the user overrides it."""
    data = chosen.data
    if named is None:
        return SOURCES[data.name].transform(size, data.mean, data.std)
    sizes = {"crop_size": size, "resize_size": round(size * 256 / 224)} if chosen.image_size else {}
    overrides = {"mean": data.mean, "std": data.std}
    return named.transforms(**sizes, **{key: value for key, value in overrides.items() if value})


def _model(
    name: str, chosen: TorchvisionOptions, named: WeightsEnum | None, classes: int, size: int, base: Path
) -> nn.Module:
    """The model in evaluation mode, without auxiliary heads.

    Raises:
        WorkloadError: its weights cannot be had, or are for another number of classes.
    """
    if named and len(named.meta["categories"]) != classes:
        trained = len(named.meta["categories"])
        raise WorkloadError(
            f"weights {chosen.weights} are for {trained} classes, but data {chosen.data.name} has {classes}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(chosen.seed)
        try:
            model = torchvision.models.get_model(name, weights=named, **_builder_arguments(name, named, classes, size))
        except (OSError, RuntimeError, AssertionError) as error:  # no network, a bad download, or a size it cannot take
            raise WorkloadError(
                f"{name} cannot be built at {size} pixels with weights {chosen.weights or 'none'}: {describe(error)}"
            ) from error
    for head in AUXILIARY_HEADS:
        if hasattr(model, head):
            setattr(model, head, None)
            setattr(model, "aux_logits", False)  # noqa: B010  (plain attributes, unknown to nn.Module's types)
    if chosen.weights and not named:
        load_file(model, base / Path(chosen.weights).expanduser())
    return model.eval()


def _builder_arguments(name: str, named: WeightsEnum | None, classes: int, size: int) -> dict[str, Any]:
    """Arguments of torchvision's builder other than the weights; named weights define the rest."""
    if named:
        return {}
    arguments: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        arguments["image_size"] = size
    elif name == "maxvit_t":
        arguments["input_size"] = (size, size)
    elif name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # left out, they warn
    return arguments


def load_file(model: nn.Module, file: Path) -> None:
    """Load a state dict without running any code in the file.

    Raises:
        WorkloadError: it is not there, not a state dict, or of another model.
    """
    if not file.is_file():
        raise WorkloadError(f"weights were looked for in {file}, but there is no such file")
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        heads = tuple(f"{head}." for head in AUXILIARY_HEADS)
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith(heads)})
    except UnpicklingError as error:
        raise WorkloadError(f"weights {file} must be a state dict of tensors alone, written by torch.save") from error
    except Exception as error:  # whatever is in the file, it is not this model's state dict
        raise WorkloadError(f"weights {file} must be a state dict of the model: {describe(error)}") from error


def _name(model_name: str, chosen: TorchvisionOptions) -> str:
    """The workload's name, and in brackets what a reader of its figures has to know."""
    caveats = ["untrained"] * (chosen.weights is None) + ["random images"] * (chosen.data.name == "random")
    return f"torchvision:{model_name}" + (f" ({', '.join(caveats)})" if caveats else "")
