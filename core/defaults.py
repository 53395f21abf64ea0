"""Where commands and calls keep things unless they name another place."""

import os
from pathlib import Path

import platformdirs

DEFAULT_STORAGE = "sqlite:///slimfront.db"
"""The database: a SQLite file in the current folder."""

DEFAULT_ARTIFACTS = Path("slimfront-artifacts")
"""The folder of trials' artifacts, in the current one."""


def cache_folder() -> Path:
    """The folder in which slimfront keeps files between runs: `SLIMFRONT_CACHE`, or else the user's cache folder."""
    override = os.environ.get("SLIMFRONT_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("slimfront")
