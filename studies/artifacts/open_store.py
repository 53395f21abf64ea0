"""The artifact store at a place, whatever kind it is."""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path

from ...core.defaults import cache_folder
from ...core.errors import StoreError
from ...core.validation import shortened
from .artifact_store import ArtifactStore
from .folder_store import FolderStore
from .url_store import UrlStore

_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,128}/objects-[0-9a-f]{8}")


def is_url(root: str) -> bool:
    """Whether artifacts lie behind a URL, and not in a folder."""
    return "://" in root


def new_prefix(study: str) -> str:
    """The part of a root that a new study gets for itself: studies of one name in two databases may share a root."""
    return f"{study}/objects-{uuid.uuid4().hex[:8]}"


def open_artifact_store(root: str, prefix: str) -> ArtifactStore:
    """The store of one study.

    Args:
        root: an absolute folder, or a URL.
        prefix: the study's own part of it.

    Raises:
        StoreError: the prefix of a database's row leads elsewhere.
        UserError: a URL that cannot be used.
    """
    if _PREFIX.fullmatch(prefix) is None or not prefix.partition("/")[0].strip("."):
        raise StoreError(f"{shortened(repr(prefix))} is not where a study keeps its artifacts")
    if is_url(root):
        return UrlStore(f"{root.rstrip('/')}/{prefix}", work_folder(root, prefix) / "fetched")
    return FolderStore(Path(root, prefix))


def work_folder(root: str, prefix: str) -> Path:
    """The local folder of a study's logs and of the files that are being made: its part of the root, or for a URL of the cache."""
    local = cache_folder() / "artifacts" / hashlib.sha256(root.encode()).hexdigest()[:8] if is_url(root) else Path(root)
    return local / prefix.partition("/")[0]
