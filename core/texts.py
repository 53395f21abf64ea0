"""Texts from outside, made safe to store and to show: messages of errors, names in a database, URLs with passwords."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

MOST_CHARACTERS = 2000
"""The most characters of a stored reason or remark."""

HIDDEN = "***"

_ESCAPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories that are shown as escapes: control and format characters, surrogates, line and paragraph separators."""

_SECRET_KEY = re.compile(r"[^\s?&;=]*(?:pass|pwd|secret|token)[^\s?&;=]*\s*=", re.IGNORECASE)
_SCHEME_AND_USER = re.compile(r"(?:\w[\w+]*:?//+)?[\w.%+-]*")


def plain_text(text: str, limit: int = MOST_CHARACTERS) -> str:
    """`text` as any database takes it and any terminal shows it: no more than `limit` characters, none of them a command.

    Control characters but tab and newline, lone surrogates and characters that turn the direction of writing become escapes such
    as `\\x1b`. What was cut is counted at the end. A text that came out of this function goes through it unchanged.
    """
    escaped = "".join(map(_printable, text[: limit + 1]))
    if len(text) <= limit and len(escaped) <= limit:
        return escaped
    cut = f"... ({len(text)} characters in all)"
    return escaped[: max(0, limit - len(cut))] + cut


def epochs_text(epochs: float) -> str:
    """A number of epochs in words.

    >>> epochs_text(1.0), epochs_text(0.5)
    ('1 epoch', '0.5 epochs')
    """
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def one_line(text: str, limit: int = MOST_CHARACTERS) -> str:
    """`plain_text` with every run of white space turned into one space."""
    return plain_text(" ".join(text.split()), limit)


def redacted(url: str) -> str:
    """A database URL as it may be shown: whatever may be a password in it, well-formed or not, is `***`.

    In doubt too much is hidden: all that follows a key such as `password=`, everything between the user's name and the last
    `@`, and a port that is not a number.
    """
    if (key := _SECRET_KEY.search(url)) is not None:
        url = url[: key.end()] + HIDDEN
    elif _SECRET_KEY.search(unquote(url)) is not None:  # a key that is written with escapes
        url = f"{url.split('?')[0]}?{HIDDEN}"
    if url.startswith("sqlite"):
        return url
    shown = _SCHEME_AND_USER.match(url)
    assert shown is not None  # it matches the empty text
    between, at, place = url[shown.end() :].rpartition("@")
    if at:
        return f"{shown[0]}:{HIDDEN}@{place}" if between else url
    port = re.match(r":(\d*)(?=[/?]|$)", place)
    return f"{shown[0]}:{HIDDEN}" if place.startswith(":") and port is None else url


def without(text: str, secrets: list[str]) -> str:
    """`text` with each of the secrets hidden where it is a word of its own."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def _printable(character: str) -> str:
    if character in "\t\n" or unicodedata.category(character) not in _ESCAPED:
        return character
    return character.encode("unicode_escape").decode("ascii")
