"""The way in from Python, in the words of the command line. May import every room; `slimfront` re-exports it, lazily.

| command | Python |
|---|---|
| `slimfront search` | `slimfront.search(...)`, which returns a `Study` |
| `slimfront status`, `front`, `show`, `export` | `Study.open(storage, name)`, then its methods |
| `slimfront verify` | `slimfront.verify(bundle, ...)` |
| `slimfront inspect` | `slimfront.inspect(workload)` |
"""

from .bundles import ExportedBundle, Verification, verify
from .inspecting import inspect
from .models import compress
from .searching import search
from .study import Study

__all__ = [
    "ExportedBundle",
    "Study",
    "Verification",
    "compress",
    "inspect",
    "search",
    "verify",
]
