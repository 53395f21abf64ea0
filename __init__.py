"""slimfront: the Pareto front of slim models.

What users of the library import from here is loaded on first use, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .spaces.policies.policy import Policy
    from .studies.store.store import Store
    from .studies.study_file.load import load_study
    from .studies.study_file.spec import StudySpec
    from .workloads.workload import Workload

__all__ = ["Policy", "Store", "StudySpec", "Workload", "load_study"]

_HOMES = {
    "Policy": ".spaces.policies.policy",
    "Store": ".studies.store.store",
    "StudySpec": ".studies.study_file.spec",
    "Workload": ".workloads.workload",
    "load_study": ".studies.study_file.spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
