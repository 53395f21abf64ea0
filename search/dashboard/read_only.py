"""Guards the dashboard: a WSGI wrapper that only lets read requests from this machine's pages through.

The dashboard has no authentication. A page of another site can send requests to it from the user's own browser, and with a name of
its own that resolves to 127.0.0.1 (DNS rebinding) read the answers; the request's Host then contains that name.
"""

from __future__ import annotations

import gzip
import io
import json
import platform
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
READ_ONLY = "this dashboard is read-only: what it shows belongs to the search, which could not continue without it"

MOST_BODY = 1_000_000
"""The most bytes of a request's body that are read and discarded, without which a refusal would not reach its sender."""

WORTH_PACKING = 10_000
"""The fewest bytes of an answer that is compressed."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@runtime_checkable
class Closable(Protocol):
    """An answer that WSGI wants closed once it is sent (PEP 3333)."""

    def close(self) -> object: ...


ANY_ADDRESS = "*"
"""The known host that allows every IP address: DNS rebinding needs a name."""


def known_hosts(listening_on: str, others: Iterable[str] = ()) -> set[str]:
    """The hosts to which a dashboard that listens on an address answers: this machine, that address, and `others` by name.

    On an address that other machines reach, every IP address and this machine's own names are known too.
    """
    named = {host.strip("[]").lower() for host in (*LOCAL_HOSTS, listening_on, *others)}
    return named if listening_on in LOCAL_HOSTS else named | {ANY_ADDRESS, platform.node().lower(), socket.getfqdn()}


def guarded(app: App, allowed: set[str]) -> App:
    """`app` for GET and HEAD alone, addressed to one of the `allowed` hosts, without a body; long answers are compressed."""

    def guard(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refusal = _refusal(environ, allowed)
        if refusal is not None:
            status, reason = refusal
            body = json.dumps({"reason": reason}).encode()
            start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(), ""  # nothing that reads needs a body
        return _packed(app, environ, start_response)

    return guard


def _refusal(environ: dict[str, Any], allowed: set[str]) -> tuple[str, str] | None:
    """Status and reason of a request that is not let through."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()):
        return "400 Bad Request", "Content-Length is not a number"
    if len(length) > 12 or int(length) > MOST_BODY:
        return "413 Content Too Large", f"a request may have {MOST_BODY} bytes; this dashboard only needs to be read"
    environ["wsgi.input"].read(int(length))
    if not _is_known(environ.get("HTTP_HOST", ""), allowed):
        return (
            "403 Forbidden",
            "this dashboard does not answer to that Host; `slimfront dashboard --allow-host` names it",
        )
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return "403 Forbidden", READ_ONLY
    return None


def _is_known(header: str, allowed: set[str]) -> bool:
    """Whether a Host header names a known host, with any port."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return host in allowed or (ANY_ADDRESS in allowed and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _packed(app: App, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The app's answer, compressed where it is long and the browser takes that."""
    if "gzip" not in environ.get("HTTP_ACCEPT_ENCODING", ""):
        return app(environ, start_response)
    begun: list[Any] = []
    parts = app(environ, lambda *arguments: begun.extend(arguments[:2]))
    body = b"".join(parts)
    if isinstance(parts, Closable):  # an open file
        parts.close()
    status, headers = begun
    names = {name.lower() for name, _ in headers}
    if len(body) >= WORTH_PACKING and "content-encoding" not in names:
        body = gzip.compress(body, compresslevel=1)
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]
