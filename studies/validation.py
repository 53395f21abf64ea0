"""The first thing pydantic finds wrong with a file, as the key it is under and one plain sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import StudyFileError
from .suggest import suggestion

Model = TypeVar("Model", bound=BaseModel)

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


def validated(model: type[Model], document: Mapping[Any, Any], file: object) -> Model:
    """`document` as a `model`; unknown keys are told first, as they often explain a missing one.

    Raises:
        StudyFileError: the first problem, under its dotted key.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    problem = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    raise StudyFileError(file, key, _sentence(model, problem))


def _sentence(model: type[BaseModel], problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key; {suggestion(problem['loc'][-1], _known_keys(model, problem['loc'][:-1]))}"
    sentence = _SENTENCES.get(problem["type"], problem["msg"].replace("{", "{{").replace("}", "}}"))
    context = {"input": reprlib.repr(problem["input"]), **problem.get("ctx", {})}
    return sentence.format(**context).replace("\n", " ")


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type), annotation
        assert issubclass(annotation, BaseModel), annotation
        model = annotation
    return list(model.model_fields)
