"""Ray, started here or joined where RAY_ADDRESS names a cluster. Import this before `ray`: it reads settings at import.

A Ray started here listens on the loopback address only, and takes nothing without its token: anyone who reaches it can run
anything.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.interrupts import raise_if_interrupted, take_ending
from ...core.texts import one_line

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # it lists weights and data, which workers need
if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
        "0"  # named after where it is the default: listen on loopback only
    )
    os.environ.pop("RAY_AUTH_MODE", None)  # a Ray that is started here asks for a token unless this says otherwise

import ray
from ray._private import worker as ray_process

OBJECT_STORE_BYTES = 200 * 2**20
"""The bytes of Ray's object store: results are small and weights stay with their worker; Ray would take 30 % of the memory."""

TOKEN = "RAY_AUTH_TOKEN"
"""The environment variable of a cluster's token."""

CONNECT_SECONDS = 5
ANSWER_SECONDS = 30
"""The seconds to wait for a cluster: one that answers does so within two, Python's start included; on a busy machine within ten."""

LOG = "ray.log"
"""The log of Ray in the study's artifacts folder."""


def is_cluster_named() -> bool:
    """Whether RAY_ADDRESS names a cluster."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def connect(cpus: int = 1, log: Path | None = None, environment: Mapping[str, Any] | None = None) -> None:
    """Join the cluster RAY_ADDRESS names, else start Ray on this machine; nothing where that is done.

    Args:
        cpus: that a Ray which is started here offers, whatever the machine has.
        log: where Ray's messages in this process go; None keeps them from anywhere.
        environment: the runtime environment of what will run on a cluster's nodes.

    Raises:
        UserError: nobody answers under RAY_ADDRESS, or the cluster does not let this user in.
    """
    if ray.is_initialized():
        return
    require_answer()
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    log_to(None)
    if not is_cluster_named():
        _give_token()
        # Without an address Ray would join what it finds on this machine.
        quiet |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    elif environment is not None:
        quiet |= {"runtime_env": dict(environment)}
    try:
        ray.init(**quiet)
        _hide_token()
    except (
        Exception
    ) as error:  # Ray raises what it likes, of no class of its own too where a node does not start in time
        raise_if_interrupted(error)
        raise UserError(f"Ray cannot be started or joined: {one_line(str(error))}") from error
    finally:
        log_to(log)  # Ray has taken the handler away
        take_ending()  # and put one of its own there


def _give_token() -> None:
    """Give a Ray that is started here a token of its own where the home folder takes none: Ray would write one there."""
    folder = _token_file().parent
    with suppress(OSError):  # as a read-only one; what counts is whether the folder takes files then
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK) and not {TOKEN, f"{TOKEN}_PATH"} & os.environ.keys():
        os.environ[TOKEN] = secrets.token_hex(32)


def _hide_token() -> None:
    """Make the token readable for this user only: other users of the machine reach its loopback address too."""
    token = _token_file()
    if token.is_file() and os.access(token.parent, os.W_OK):
        token.chmod(0o600)


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def require_answer() -> None:
    """Require that the cluster of RAY_ADDRESS answers; Ray itself would wait for minutes, and ignore signals. Nothing without one.

    Raises:
        UserError: it does not.
    """
    if not is_cluster_named():
        return
    address = os.environ["RAY_ADDRESS"]
    if (problem := _why_no_answer(address)) is not None:
        raise UserError(
            f"RAY_ADDRESS={address}: {one_line(problem, 300)}; start the cluster, correct RAY_ADDRESS, or unset it to run "
            "on this machine"
        )


def _why_no_answer(address: str) -> str | None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            return f"nobody answers there ({error})"
    if address.startswith("ray://"):
        return None
    check = ["ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]
    try:
        found = subprocess.run(
            [sys.executable, "-m", *check], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no Ray cluster answers there within {ANSWER_SECONDS} s"
    if "uthentication" in found.stderr:
        return "the cluster wants a token: copy its ~/.ray/auth_token here and set RAY_AUTH_MODE=token"
    said = found.stderr.strip().splitlines() or ["no Ray cluster answers there"]
    return said[-1].rstrip(".") if found.returncode else None


def _log_lines(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """Log what Ray says of a cluster's nodes and workers; it prints that on standard output, whatever `ray.init` is asked for."""
    for line in data["lines"]:
        logging.getLogger("ray").warning("%s", line)


ray_process.print_to_stdstream = _log_lines


def log_to(file: Path | None) -> None:
    """Have the loggers of Ray write to `file`, or nowhere, and never to the terminal."""
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "ray"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "ray"
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8") if file is not None else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("ray").addHandler(handler)
    # `ray.init` takes that away, and Python prints the warnings that no handler takes.
    logging.getLogger("ray._private").addHandler(logging.NullHandler())
