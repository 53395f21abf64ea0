"""Where commands and calls keep things unless they name another place."""

from pathlib import Path

DEFAULT_STORAGE = "sqlite:///slimfront.db"
"""The database: a SQLite file in the current folder."""

DEFAULT_ARTIFACTS = Path("slimfront-artifacts")
"""The folder of trials' artifacts, in the current one."""
