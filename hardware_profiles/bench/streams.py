"""Latency and throughput mode: one session, or several that run at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..cards.target import Target
from ..runtimes.base import Session, get_runtime


def load_streams(artifact: Path, target: Target) -> Session:
    """A session as `target` runs it: one on all its threads, or `streams` that share the threads.

    Raises:
        LoweringError: the runtime refuses the file.
    """
    runtime = get_runtime(target.runtime)
    if target.streams == 1:
        return runtime.load(artifact, target)
    return Streams([runtime.load(artifact, target, target.threads // target.streams) for _ in range(target.streams)])


class Streams:
    """Sessions of one artifact that each run a batch at the same time; see `Session`.

    Handing a batch to each of the threads and waiting for the last costs some tens of microseconds a run.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions
        self._threads = ThreadPoolExecutor(len(sessions))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of the last stream; all streams run the same batch."""
        outputs = list(self._threads.map(lambda session: session.run(inputs), self._sessions))
        return outputs[-1]

    def executed_precisions(self) -> dict[str, str]:
        """Those of any stream; all load one artifact."""
        return self._sessions[0].executed_precisions()
