"""YAML and JSON from files as plain values, and texts to files; documents that are too large, too deep, or expanded by aliases are refused before they are parsed."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from .errors import DocumentError, UserError
from .validation import shortened

MAX_YAML_BYTES = 2**20
MAX_JSON_BYTES = 2**22
MAX_DEPTH = 50
"""The deepest nesting of lists and mappings."""

MAX_VALUES = 50_000
"""The most values of a YAML document, with each alias counted as its expansion."""

MAX_COMMAS = 200_000
"""The most commas of a JSON document, a bound on its values that is fast to count."""

MAX_DIGITS = 100
"""The most characters of a number."""

_STRINGS = re.compile(r'"(?:[^"\\]|\\.?)*(?:"|\Z)', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_BadScalar = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
"""The errors of PyYAML's constructors for a scalar that does not match its tag."""


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """`yaml.SafeLoader`, libyaml's where PyYAML has it, that refuses duplicate keys, reports the line of a scalar that it
    cannot construct, and reads 1e-3 as a number, as YAML 1.2 does."""

    def get_single_node(self) -> yaml.Node | None:
        root = super().get_single_node()
        _refuse_duplicate_keys([root] if root else [])
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            problem = f"a number of {len(node.value):,} characters; at most {MAX_DIGITS} are allowed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except _BadScalar as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{shortened(node.value)} is not a valid {kind}; text stands in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_file(path: Path, most: int, regular: bool = False) -> bytes:
    """The content of a file.

    Args:
        most: bytes it may have.
        regular: refuse links, pipes and devices, for a file that comes from somebody else.

    Raises:
        DocumentError: it cannot be read, is larger, or is not regular.
    """
    try:
        if regular:
            require_regular(path)
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # a null character in the name is a ValueError
        problem = getattr(error, "strerror", None) or str(error)
        raise DocumentError(f"cannot be read: {problem.lower()}") from error
    if len(content) > most:
        raise DocumentError(f"is larger than {most:,} bytes")
    return content


def write_file(path: Path, text: str) -> None:
    """Write a text to a file that the user named.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def require_regular(path: Path) -> os.stat_result:
    """The status of a file that is neither a link nor a pipe nor a device.

    Raises:
        DocumentError: it is one of those.
        OSError: there is no such file.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise DocumentError("is a link; a file itself has to be there")
    if not stat.S_ISREG(status.st_mode):
        raise DocumentError("is not a regular file")
    return status


def yaml_document(content: bytes) -> Any:
    """The value of a YAML text: mappings, lists and scalars.

    Raises:
        DocumentError: not YAML, a duplicate key, or beyond the limits; with the line where it is known.
    """
    try:
        if len(content) > MAX_YAML_BYTES:
            raise DocumentError(f"is larger than {MAX_YAML_BYTES:,} bytes")
        _check_limits(yaml.parse(content, _Loader))
        return yaml.load(content, _Loader)  # a SafeLoader: it makes plain values only
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DocumentError(str(error.problem), line) from error
    except yaml.YAMLError as error:
        raise DocumentError(f"is not YAML: {str(error).splitlines()[0]}") from error


def json_document(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        DocumentError: not JSON, or beyond the limits.
    """
    if len(content) > MAX_JSON_BYTES:
        raise DocumentError(f"is larger than {MAX_JSON_BYTES:,} bytes")
    try:
        text = content.decode() if isinstance(content, bytes) else content
        if _depth(text) > MAX_DEPTH:
            raise DocumentError(f"is nested more than {MAX_DEPTH} deep")
        if text.count(",") > MAX_COMMAS:
            raise DocumentError(f"holds more than {MAX_COMMAS:,} values")
        return json.loads(text, parse_int=_whole)
    except ValueError as error:
        raise DocumentError(f"is not JSON: {error}") from error


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} characters; at most {MAX_DIGITS} are allowed")
    return int(digits)


def _depth(text: str) -> int:
    """How many brackets are open at most, those within strings left out."""
    depth = deepest = 0
    for bracket in _NO_BRACKETS.sub("", _STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _check_limits(events: Iterable[yaml.Event]) -> None:
    """Count the document's values, with aliases expanded, and its depth, without building any of it."""
    collections: list[tuple[str | None, int]] = []  # anchor of each open one, values in it so far
    sizes: dict[str, int] = {}
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            collections.append((event.anchor, 1))
            _require(len(collections) <= MAX_DEPTH, f"lists and mappings are nested more than {MAX_DEPTH} deep", event)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = collections.pop()
        elif isinstance(event, yaml.AliasEvent):
            _require(event.anchor in sizes, f"the alias {shortened(event.anchor)} stands for nothing before it", event)
            anchor, size = None, sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        if anchor:
            sizes[anchor] = size
        if collections:
            around, held = collections[-1]
            collections[-1] = (around, held + size)
            _require(held + size <= MAX_VALUES, f"more than {MAX_VALUES:,} values, aliases written out", event)


def _require(holds: bool, problem: str, event: yaml.Event) -> None:
    if not holds:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _refuse_duplicate_keys(nodes: list[yaml.Node]) -> None:
    visited: set[int] = set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited or isinstance(node, yaml.ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        seen = set()
        for key, value in node.value:
            nodes += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {shortened(key.value)} appears twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
