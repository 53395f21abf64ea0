"""What is wrong with a command line, in one sentence; numbers read from text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import typer

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""click's `UsageError`, or that of the copy of click that newer releases of typer hold."""

QUOTE = "'"
_CHOICE = re.compile(r"(?P<value>'.*') is not one of (?P<known>'.*')\.?$")
_EXTRA = re.compile(r"Got unexpected extra argument(\(?s\)?)? \((?P<extra>.*)\)$", re.DOTALL)
_COMMAND = re.compile(r"No such command '(?P<name>.*?)'")


def whole_number(text: str) -> int:
    """The number that an argument holds; a `parser` of typer's."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number, not {text!r}") from None


def workers_count(text: str) -> int | str:
    """A number of workers, or "auto"."""
    return text if text == "auto" else whole_number(text)


def number(text: str) -> float:
    """The number that an argument holds; a `parser` of typer's."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, not {text!r}") from None


def port_number(text: str) -> int:
    """A port that can be listened on; a `parser` of typer's."""
    port = whole_number(text)
    if not 1 <= port <= 65535:
        raise typer.BadParameter(f"must be between 1 and 65535, not {port}")
    return port


def usage_problem(error: Any) -> str:
    """What was typed wrong and what would be right, and the command that explains it.

    Args:
        error: a `USAGE_ERROR`.
    """
    context = error.ctx
    path = context.command_path if context is not None else "slimfront"
    return f"{_problem(error)}; `{path} --help` explains it"


def _problem(error: Any) -> str:
    for recognise in (_unknown_option, _unknown_command, _no_value, _extra_argument, _wrong_value):
        if (problem := recognise(error, str(error.message or "").removeprefix("Value error, "))) is not None:
            return problem
    message = str(error.message or "")
    return message[:1].lower() + message[1:].rstrip(".")


def _unknown_option(error: Any, message: str) -> str | None:
    option = getattr(error, "option_name", None)
    if not option or not message.startswith("No such option"):
        return None
    parameters = error.ctx.command.params if error.ctx else []
    options = {name for parameter in parameters for name in parameter.opts if name.startswith("-")}
    return f"there is no option {option}; {_suggestion(option, options | {'--help'})}"


def _unknown_command(error: Any, message: str) -> str | None:
    if (found := _COMMAND.match(message)) is None:
        return None
    return f"there is no command {found['name']!r}; {_suggestion(found['name'], error.ctx.command.commands)}"


def _no_value(error: Any, message: str) -> str | None:
    option = getattr(error, "option_name", None)
    return f"{option} needs a value" if option and message.endswith("requires an argument.") else None


def _extra_argument(error: Any, message: str) -> str | None:
    found = _EXTRA.match(message)
    return f"{found['extra']!r} is one argument too many" if found else None


def _wrong_value(error: Any, message: str) -> str | None:
    """What is wrong with the value of a parameter that the error names."""
    if (parameter := getattr(error, "param", None)) is None:
        return None
    name = _name(parameter)
    if type(error).__name__ == "MissingParameter":
        return f"{name} is missing"
    if found := _CHOICE.search(message):
        known = [choice.strip(QUOTE) for choice in found["known"].split(", ")]
        return f"{name} has no choice {found['value']}; {_suggestion(found['value'].strip(QUOTE), known)}"
    return f"{name} {message}".rstrip(".")


def _suggestion(name: str, known: Iterable[str]) -> str:
    from ..core.validation import suggestion  # imports pydantic, which `--help` does without

    return suggestion(name, known)


def _name(parameter: Any) -> str:
    """An option as it is typed, an argument as the help calls it."""
    if parameter.param_type_name == "option":
        return parameter.opts[-1] if not parameter.opts[0].startswith("--") else parameter.opts[0]
    return (parameter.metavar or parameter.name.upper()).strip("[]")
