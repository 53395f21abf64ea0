"""One driver per study: a second one would pop the same enqueued trials."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import StoreError
from ..studies.store import lease
from ..studies.store.store import Store


@contextmanager
def sole_driver(store: Store, study: str) -> Iterator[None]:
    """Be the only driver of `study` while the context lasts.

    A thread renews the lease. Where another process took the study over, because this one slept too long, every write of
    `store` is refused and the main thread, if it is here, is interrupted.

    Raises:
        StoreError: another process drives the study, or has taken it over.
    """
    held = store.lease(study)
    held.take()
    heart = _Heart(held)
    heart.start()
    try:
        yield
    except KeyboardInterrupt:
        if heart.lost:
            raise held.lost() from None
        raise
    finally:
        heart.stop()
        held.release()


class _Heart(threading.Thread):
    """Renews a lease until it is stopped or the lease is lost."""

    def __init__(self, held: lease.Lease) -> None:
        super().__init__(name="lease", daemon=True)
        self._held = held
        self._stopped = threading.Event()
        self._in_main = threading.current_thread() is threading.main_thread()
        self.lost = False

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(lease.HEARTBEAT_S):
            try:
                self._held.renew()
            except StoreError:  # or the database was busy or unreachable for a moment; the next heartbeat shows which
                if self._is_lost():
                    break

    def _is_lost(self) -> bool:
        try:
            self.lost = not self._held.is_held()
        except StoreError:
            return False
        if self.lost and self._in_main and not self._stopped.is_set():
            # To that very thread, or it would not wake from what it waits for.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return self.lost
