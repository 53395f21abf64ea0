"""A bundle's run.py: `standalone`, and the loader of a runtime that is not slimfront's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...hardware_profiles.runtimes.registry import RUNTIMES
from . import standalone

END = '\n\nif __name__ == "__main__":\n'


def loader_of(runtime: str) -> Callable[..., Any] | None:
    """What loads an artifact of a runtime in a bundle; None where the runtime's package names nothing."""
    if runtime in standalone.LOADERS or not RUNTIMES[runtime].loader:
        return standalone.LOADERS.get(runtime)
    module, _, function = RUNTIMES[runtime].loader.partition(":")
    return getattr(import_module(module), function)


def run_script(runtime: str) -> str | None:
    """The source of run.py for artifacts of a runtime; None where nothing loads them."""
    source, loader = inspect.getsource(standalone), loader_of(runtime)
    if loader is None or runtime in standalone.LOADERS:
        return source if loader else None
    own = f"{inspect.getsource(loader)}\n\nLOADERS[{runtime!r}] = {loader.__name__}\n"
    return source.replace(END, f"\n\n{own}{END}")
