"""Studies in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.defaults import DEFAULT_STORAGE
from .shown import progress_console

if TYPE_CHECKING:
    from rich.console import Console


def dashboard(
    storage: str = DEFAULT_STORAGE,
    name: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    allow_hosts: Sequence[str] = (),
    progress: bool | Console = True,
) -> None:
    """Serve optuna-dashboard over a database, read-only, until Ctrl-C.

    Args:
        storage: a SQLite file, or a URL: `sqlite:///FILE`, `postgresql://USER@HOST/NAME`.
        name: study whose page is announced; all are served.
        host: address to listen on. The dashboard has no authentication.
        port: to listen on.
        allow_hosts: further names by which browsers reach this machine.
        progress: whether to print the address on stderr, or the console to print it on.

    Raises:
        UserError: no such database or study, or the address cannot be listened on.
    """
    from ..search.dashboard.serve import serve  # imports optuna
    from ..studies.store.store import Store

    with Store(storage, create=False) as store:
        serve(store, name, host, port, progress_console(progress), allow_hosts)
