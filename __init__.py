"""slimfront: the Pareto front of slim models.

What users of the library import from here is loaded on first use, so that the command line starts without torch. Names that
are not in `__all__` are private by convention and may change.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        Audit,
        Collection,
        ExportedBundle,
        Profile,
        Profiles,
        Report,
        Studies,
        Study,
        Verification,
        compress,
        dashboard,
        delete,
        gc,
        inspect,
        profile,
        profiles,
        rename,
        search,
        studies,
        verify,
    )
    from .compression.pruning.criteria import register_criterion
    from .compression.recovery.distil import register_distiller
    from .core.errors import SlimfrontError, UserError
    from .spaces.policies.policy import Policy
    from .studies.store.store import Store
    from .studies.study_file.load import load_study
    from .studies.study_file.spec import StudySpec
    from .workloads.output_kind import OutputKind
    from .workloads.workload import Workload

    __version__: str
else:
    from . import search, studies  # a docstring each; `_Callable` below says why

__all__ = [
    "Audit",
    "Collection",
    "ExportedBundle",
    "OutputKind",
    "Policy",
    "Profile",
    "Profiles",
    "Report",
    "SlimfrontError",
    "Store",
    "Studies",
    "Study",
    "StudySpec",
    "UserError",
    "Verification",
    "Workload",
    "__version__",
    "compress",
    "dashboard",
    "delete",
    "gc",
    "inspect",
    "load_study",
    "profile",
    "profiles",
    "register_criterion",
    "register_distiller",
    "rename",
    "search",
    "studies",
    "verify",
]

_HOMES = {
    "Audit": ".api",
    "Collection": ".api",
    "ExportedBundle": ".api",
    "OutputKind": ".workloads.output_kind",
    "Policy": ".spaces.policies.policy",
    "Profile": ".api",
    "Profiles": ".api",
    "Report": ".api",
    "SlimfrontError": ".core.errors",
    "Store": ".studies.store.store",
    "Studies": ".api",
    "Study": ".api",
    "StudySpec": ".studies.study_file.spec",
    "UserError": ".core.errors",
    "Verification": ".api",
    "Workload": ".workloads.workload",
    "compress": ".api",
    "dashboard": ".api",
    "delete": ".api",
    "gc": ".api",
    "inspect": ".api",
    "load_study": ".studies.study_file.load",
    "profile": ".api",
    "profiles": ".api",
    "register_criterion": ".compression.pruning.criteria",
    "register_distiller": ".compression.recovery.distil",
    "rename": ".api",
    "verify": ".api",
}


class _Callable(ModuleType):
    """A package that is also the function of its name: `slimfront.search(workload, budget=100)`, `slimfront.studies()`.

    Any import of a module in the package binds the package to that name here, so that no function could keep it.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(".api", __package__), self.__name__.rpartition(".")[2])(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)


if not TYPE_CHECKING:
    search.__class__ = studies.__class__ = _Callable


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("slimfront")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
