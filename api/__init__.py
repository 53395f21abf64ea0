"""The way in from Python, in the words of the command line. May import every room; `slimfront` re-exports it, lazily.

| command | Python |
|---|---|
| `slimfront search` | `slimfront.search(...)`, which returns a `Study` |
| `slimfront inspect` | `slimfront.inspect(workload)` |
| `slimfront studies` | `slimfront.studies(storage)` |
| `slimfront status`, `show`, `audit`, `export` | `Study.open(storage, name)`, then its method of that name |
| `slimfront front` | `Study.front()` for a data frame, `Study.show_front()` for what the command prints |
| `slimfront verify` | `slimfront.verify(bundle, ...)`, or `Study.verify(bundle)` |
| `slimfront profile`, `profiles` | `slimfront.profile(target)`, `slimfront.profiles(storage)` |
| `slimfront dashboard` | `slimfront.dashboard(storage)` |
| `slimfront gc`, `delete`, `rename` | `slimfront.gc(name)`, `slimfront.delete(name)`, `slimfront.rename(old, new)` |
"""

from .audits import Audit
from .bundles import ExportedBundle, Verification, verify
from .dashboard import dashboard
from .inspecting import inspect
from .listing import Studies, studies
from .models import compress
from .searching import search
from .shown import Report
from .study import Study
from .targets import Profile, Profiles, profile, profiles
from .upkeep import Collection, delete, gc, rename

__all__ = [
    "Audit",
    "Collection",
    "ExportedBundle",
    "Profile",
    "Profiles",
    "Report",
    "Studies",
    "Study",
    "Verification",
    "compress",
    "dashboard",
    "delete",
    "gc",
    "inspect",
    "profile",
    "profiles",
    "rename",
    "search",
    "studies",
    "verify",
]
