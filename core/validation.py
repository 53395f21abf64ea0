"""Error messages about files and names: the first problem that pydantic finds in one plain sentence, and suggestions."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

MAX_SENTENCE = 300
"""The most characters of an error message; the middle of a longer one is left out."""

MAX_SHOWN = 80
"""The most characters of a key or a value within an error message."""

_SENTENCES = {
    "missing": "is missing",
    "int_type": "must be a whole number, not {input}",
    "int_from_float": "must be a whole number, not {input}",
    "float_type": "must be a number, not {input}",
    "finite_number": "must be a finite number, not {input}",
    "string_type": "must be text, not {input}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "may only hold letters, digits, '.', '_' and '-', not {input}",
    "tuple_type": "must be a list, not {input}",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "dict_type": "must be a mapping of keys, not {input}",
    "model_type": "must be a mapping of keys, not {input}",
    "model_attributes_type": "must be a mapping of keys, not {input}",
    "invalid_key": "keys must be text",
    "invalid-json-value": "must be text, a number, true, false, null, a list or a mapping, not {input}",
    "greater_than": "must be > {gt:g}, not {input}",
    "greater_than_equal": "must be at least {ge:g}, not {input}",
    "less_than": "must be < {lt:g}, not {input}",
    "less_than_equal": "must be at most {le:g}, not {input}",
    "literal_error": "{input} is not one of {expected}",
    "value_error": "{error}",
}
"""pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/) in this project's words."""


def shortened(text: object, most: int = MAX_SHOWN) -> str:
    """`text` on one line, its middle left out where it has more than `most` characters."""
    line = str(text).replace("\n", " ")
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def _not_a_folder(name: str) -> str:
    if not name.strip("."):
        raise ValueError(f"{name!r} is a folder of its own in a path; add a letter or a digit")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=128), AfterValidator(_not_a_folder)]
"""The type of names of studies and targets, which are also parts of paths."""

MAX_COUNT = 10**9
"""The largest count of anything, such as trials."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
T = TypeVar("T")


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} appears twice")
        seen.add(value)
    return values


Ordered = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
Listed = Annotated[tuple[T, ...], Field(max_length=1000), BeforeValidator(_as_tuple), AfterValidator(_distinct)]


def one_of(allowed: tuple[T, ...]) -> AfterValidator:
    """A pydantic validator that accepts only these values."""

    def check(value: T) -> T:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, allowed))}")
        return value

    return AfterValidator(check)


def first_problem(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """Dotted key ("" for the whole file) and what is wrong with it; unknown keys are reported first, as they often explain a
    missing one."""
    problem = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(shortened(part) for part in problem["loc"] if part != "[key]")
    return shortened(key, 2 * MAX_SHOWN), shortened(_sentence(model, problem), MAX_SENTENCE)


def suggestion(name: object, known: Iterable[str]) -> str:
    """ "did you mean X?" where a known name is near, the list of known names otherwise."""
    known = sorted(known)
    near = difflib.get_close_matches(shortened(name), known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(known)}" if known else "there are none yet"


def _sentence(model: type[BaseModel], problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key; {suggestion(problem['loc'][-1], _known_keys(model, problem['loc'][:-1]))}"
    sentence = _SENTENCES.get(problem["type"], problem["msg"].replace("{", "{{").replace("}", "}}"))
    context = {"input": reprlib.repr(problem["input"]), **problem.get("ctx", {})}
    return sentence.format(**context)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the model at `location`: below a list of models stands a place, below a mapping of them a name."""
    found: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and found is not None and part in found.model_fields:
            found = _model_in(found.model_fields[part].annotation)
    return list(found.model_fields) if found else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Model`, `Model | None`, `list[Model]` or `dict[str, Model]`."""
    candidates = [annotation, *get_args(annotation)]
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)
