"""The registry of knob kinds, which installed packages extend by entry points in the group `slimfront.knobs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ...core.errors import PolicyError
from ...core.registry import Registry
from .kind import KnobKind

_NUMBERED = (
    "width", "recovery_epochs", "channels", "weight_bits", "activation_bits", "sparsity",
    "criterion", "scope", "steps", "reduction", "removed", "operator", "codebook", "activation_range", "depth",
    "multiple", "float_precision", "weight_group_size", "recurrent_weights", "embedding_bits",
)  # fmt: skip
"""Kinds in the order that parameters are numbered in, which databases hold; all others come after these."""


def _built_in() -> dict[str, KnobKind]:
    """Name -> kind, of the `KINDS` of every other module of this folder but `kind`, which defines what they are."""
    names = sorted(module.name for module in iter_modules([str(Path(__file__).parent)]))
    modules = [import_module(f".{name}", __package__) for name in names if name not in ("kind", "registry")]
    return {kind.name: kind for module in modules for kind in module.KINDS}


class _KnobKinds(Registry[KnobKind]):
    """Kinds of knobs by name, in the order that parameters are numbered in: those named in `_NUMBERED`, then others as they
    were registered, then those of installed packages by name."""

    def __init__(self) -> None:
        super().__init__("kind of knob", "slimfront.knobs", PolicyError, _built_in())
        self._added: Callable[[KnobKind], None] = lambda _: None

    def register(self, name: str, implementation: KnobKind, *, replace: bool = False) -> None:
        keys = {kind.key: kind.name for kind in self._own.values()}
        known = self._own.get(name, implementation)
        if keys.get(implementation.key, name) != name or known.key != implementation.key:
            problem = f"kind of knob {name!r} cannot have the key {implementation.key!r}"
            raise PolicyError(
                f"{problem}; kinds and their keys are {', '.join(f'{of}: {key}' for key, of in keys.items())}"
            )
        super().register(name, implementation, replace=replace)
        self._added(implementation)

    def __getitem__(self, name: str) -> KnobKind:
        kind = super().__getitem__(name)
        if not isinstance(kind, KnobKind) or kind.name != name:
            found = f"is called {kind.name!r}" if isinstance(kind, KnobKind) else f"is a {type(kind).__name__}"
            raise PolicyError(
                f"the entry point {name!r} in slimfront.knobs has to load a KnobKind of that name; it {found}"
            )
        return kind

    def __iter__(self) -> Iterator[str]:
        numbered = [name for name in _NUMBERED if name in self._own]
        return iter(dict.fromkeys([*numbered, *self._own, *super().__iter__()]))

    def each(self, use: Callable[[KnobKind], None]) -> None:
        """Call `use` with every kind there is, and with each that is registered later."""
        for kind in self.values():
            use(kind)
        self._added = use


KNOB_KINDS = _KnobKinds()
"""Name -> kind of knob."""


def register(kind: KnobKind, *, replace: bool = False) -> None:
    """Make a kind of knob known: study files, spaces and reports have it from then on.

    Raises:
        PolicyError: its name or key is taken.
    """
    KNOB_KINDS.register(kind.name, kind, replace=replace)
