"""Hooks on modules of torch for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks, which were just registered, at the end of the block."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield
