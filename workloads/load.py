"""Finding a workload by its name: a built-in one, or a function of the user's that returns one."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..core.errors import WorkloadError
from ..core.interrupts import raise_if_interrupted
from ..core.validation import MAX_SENTENCE, shortened
from .adapt import adapted
from .attention import explicit_attention
from .cache import state_digest
from .plain_layers import plain_layers
from .recurrent import free_layers
from .workload import SPLITS, Workload, describe

TORCHVISION, TIMM, TRANSFORMERS = "torchvision:", "timm:", "transformers:"
DIGITS = ("digits", "digits-vit", "digits-gru", "digits-lstm")
OWN_FORMS = "path/to/file.py:function or package.module:function"
OBJECT = "object:"
"""The prefix of the name of a workload that a Python program passed as an object, which no other program can load."""


def builtin_workloads() -> list[str]:
    """The names of the built-in workloads: NAME is any classification model of torchvision or timm, FOLDER one that transformers reads."""
    return [*DIGITS, f"{TORCHVISION}NAME", f"{TIMM}NAME", f"{TRANSFORMERS}FOLDER"]


def load_workload(reference: str, options: Mapping[str, Any] | None = None, base: Path | None = None) -> Workload:
    """The workload a study file names, held against its contract.

    Args:
        reference: one of `DIGITS`, `torchvision:NAME`, `timm:NAME`, `transformers:FOLDER`, `path/to/file.py:function` or `package.module:function`. The function
            is called with the options and returns a `Workload`. While it loads, modules are also found in the file's
            own folder, or in `base` for a module.
        options: keyword arguments.
        base: the folder that relative paths start from, which is the study file's; the current one by default.

    Raises:
        WorkloadError: in one line, what is wrong and what would be right.
    """
    base = (base or Path.cwd()).resolve()
    _show_every_layer()
    with _named(reference):
        if reference in DIGITS or reference.startswith((TORCHVISION, TIMM, TRANSFORMERS)):
            workload = _called(_builtin(reference, base), options or {})
        else:
            workload = _own(reference, options or {}, base)
    return adopt_workload(workload, reference, base)


def adopt_workload(workload: Workload, name: str, base: Path) -> Workload:
    """A workload that a program made, held against its contract and adapted to the form that slimfront reads.

    Args:
        name: how errors and reports call it, unless it has a name.
        base: the folder that relative paths of its code start from.

    Raises:
        WorkloadError: in one line, what is wrong and what would be right.
    """
    _show_every_layer()
    with _named(name):
        workload.check()
        workload = adapted(workload)
    model = explicit_attention(workload.model, workload.example_input)
    model = free_layers(plain_layers(model, workload.example_input), workload.example_input)
    return replace(workload, model=model, name=workload.name or name, base=base)


def _show_every_layer() -> None:
    # torch's fused encoder layers call no layer that could be looked at, and their nested tensors have no sizes to trace.
    torch.backends.mha.set_fastpath_enabled(False)


def workload_fingerprint(workload: Workload) -> str:
    """SHA-256 (hex) of the model's weights and the sizes of the splits: another one when the model, its
    dynamic axes or the data changed."""
    sizes = [len(getattr(workload, split)) for split in SPLITS]
    axes = f" {workload.dynamic_axes}" if workload.dynamic_axes else ""
    return hashlib.sha256(f"{state_digest(workload.model.state_dict())} {sizes}{axes}".encode()).hexdigest()


@contextmanager
def _named(reference: str) -> Iterator[None]:
    """Begin the line of every `WorkloadError` with the reference."""
    try:
        yield
    except WorkloadError as error:
        problem = shortened(error, 2 * MAX_SENTENCE)
        raise WorkloadError(f"workload {shortened(reference, MAX_SENTENCE // 2)}: {problem}") from error.__cause__


def _builtin(reference: str, base: Path) -> Callable[..., object]:
    # Imported here, because each brings libraries that the other workloads do not need.
    if reference in DIGITS:
        from .builtin.digits import digits

        return partial(digits, reference)
    kind, _, name = reference.partition(":")
    if kind == "torchvision":
        from .torchvision.models import torchvision_workload

        return partial(torchvision_workload, name, base)
    with _extra(kind):
        if kind == "timm":
            from .named.timm_models import timm_workload

            return partial(timm_workload, name, base)
        from .named.transformers_models import transformers_workload

        return partial(transformers_workload, name, base)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Name the extra to install where its library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise WorkloadError(f"{name} is not installed: pip install 'slimfront[{name}]'") from error


def _own(reference: str, options: Mapping[str, Any], base: Path) -> Workload:
    if reference.startswith(OBJECT):
        raise WorkloadError(
            "it was given as an object of a Python program: give it again, slimfront.search(workload, ...)"
        )
    place, colon, name = reference.rpartition(":")
    if not (colon and place and name):
        raise WorkloadError(f"unknown; it must be {', '.join(builtin_workloads())}, {OWN_FORMS}")
    is_file = place.endswith(".py") or "/" in place
    file = base / os.path.expanduser(place)  # which leaves an unknown user's home as it is, where Path raises
    if is_file and not os.path.isfile(file):
        raise WorkloadError(f"there is no file {shortened(file, MAX_SENTENCE)}")
    with _importable(file.parent if is_file else base):
        module = _file_module(file, base) if is_file else _module(place)
        return _called(_function(module, name), options)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Resolve relative paths and modules from a study file's folder, as its owner's scripts do."""
    with chdir(folder), _importable(folder.resolve()):
        yield


def settle_in(folder: Path) -> None:
    """`working_in` for the rest of a worker's process. Another node of a cluster need not have the folder: nothing then changes."""
    if folder.is_dir():
        os.chdir(folder)
        sys.path.insert(0, str(folder))


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have removed it itself
            sys.path.remove(str(folder))


def _file_module(file: Path, base: Path) -> ModuleType:
    """Run a file as a module of its own, anew each time, under a name that no other file's module has.

    A copy of the study file's folder on another machine gives it the same name: what is pickled here is found there.
    """
    place = os.path.relpath(file, base) if file.is_relative_to(base) else str(file)
    digest = hashlib.sha256(place.encode() + file.read_bytes()).hexdigest()[:8]
    name = f"slimfront_workload_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise WorkloadError(f"{file} must be a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's code may raise anything, and scripts like to exit
        del sys.modules[name]
        raise_if_interrupted(error)
        raise WorkloadError(f"importing it raised {describe(error)}") from error
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise WorkloadError(f"there is no module {missing!r}; is its package installed?") from error
        raise WorkloadError(f"importing it raised {describe(error)}") from error
    except BaseException as error:  # the user's code may raise anything, and scripts like to exit
        raise_if_interrupted(error)
        raise WorkloadError(f"importing it raised {describe(error)}") from error


def _function(module: ModuleType, name: str) -> Callable[..., object]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    some = difflib.get_close_matches(name, own) or [key for key in own if not key.startswith("_")][:5] or ["nothing"]
    raise WorkloadError(f"there is no function {name!r} in it; there is {', '.join(some)}")


def _called(function: Callable[..., object], options: Mapping[str, Any]) -> Workload:
    """Call a workload's function with the options, and hold what it returns to be a `Workload`."""
    signature = inspect.signature(function)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise WorkloadError(f"options do not fit: {error}; its options are: {known}") from error
    try:
        workload = function(**options)
    except WorkloadError:
        raise  # already a line for the user
    except BaseException as error:  # the user's code may raise anything, and scripts like to exit
        raise_if_interrupted(error)
        raise WorkloadError(f"it raised {describe(error)}") from error
    if not isinstance(workload, Workload):
        raise WorkloadError(f"it must return a slimfront.Workload, not {type(workload).__name__}")
    return workload
