"""Registries: implementations of one kind by name, which installed packages extend through entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import SlimfrontError, describe_exception

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Implementations of one kind by name: slimfront's own, those a program registers, and those of installed packages.

    A package adds an implementation by an entry point in the registry's group: the entry point's name is the name that
    study files use. Names are listed without importing anything; a package is imported when its name is first looked up, so
    that a broken one is refused by its own name alone.

    Args:
        kind: how errors call an entry, such as "criterion".
        group: the group of entry points, such as "slimfront.criteria".
        error: raised for an unknown name, a name given twice and a package that cannot be imported.
        built_in: slimfront's own implementations.
    """

    def __init__(
        self, kind: str, group: str, error: type[SlimfrontError], built_in: Mapping[str, T] | None = None
    ) -> None:
        self._kind, self._group, self._error = kind, group, error
        self._own: dict[str, T] = dict(built_in or {})
        self._built_in = frozenset(self._own)

    @property
    def registered(self) -> Mapping[str, T]:
        """What was registered in this process and is not built in: other processes do not have it."""
        return {name: found for name, found in self._own.items() if name not in self._built_in}

    def register(self, name: str, implementation: T, *, replace: bool = False) -> None:
        """Make an implementation known by `name`.

        A name can be registered again by the same class or function of the caller's, as when a notebook's cell or a workload's
        file runs again.

        Args:
            replace: take the place of the implementation of that name.

        Raises:
            SlimfrontError: the name is taken; an instance of the registry's own error class.
        """
        known = self._own.get(name)
        if known is not None and not replace and not _is_same_again(known, implementation):
            raise self._error(f"{self._kind} {name!r} is already registered; known are {', '.join(self)}")
        self._own[name] = implementation

    def __getitem__(self, name: str) -> T:
        """The implementation called `name`.

        Raises:
            SlimfrontError: unknown, offered twice, or of a package that cannot be imported; an instance of the registry's own
                error class.
        """
        entries = self._entries.get(name, [])
        if len(entries) + (name in self._own) > 1:
            offering = ["slimfront"] * (name in self._own) + [_package(entry) for entry in entries]
            raise self._error(f"{self._kind} {name!r} is offered by {' and '.join(offering)}; uninstall all but one")
        if name in self._own:
            return self._own[name]
        if not entries:
            raise self._error(f"unknown {self._kind} {name!r}; known are {', '.join(self)}")
        try:
            return entries[0].load()
        except Exception as error:  # another package's code may raise anything
            problem = describe_exception(error)
            raise self._error(
                f"{self._kind} {name!r} of package {_package(entries[0])} cannot be imported: {problem}"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._own, *self._entries}))

    def __len__(self) -> int:
        return len({*self._own, *self._entries})

    @cached_property
    def _entries(self) -> Mapping[str, list[EntryPoint]]:
        """Name -> the entry points of that name; more than one where two packages offer it."""
        from importlib.metadata import entry_points  # only here: reading what is installed takes time

        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self._group):
            found.setdefault(entry.name, []).append(entry)
        return found


def _is_same_again(known: Any, new: Any) -> bool:
    """Whether both are of one class or function, perhaps defined anew, that is not slimfront's or Python's own."""
    one, other = (each if hasattr(each, "__qualname__") else type(each) for each in (known, new))
    is_named_alike = (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
    return is_named_alike and one.__module__.split(".")[0] not in ("builtins", "slimfront")


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
