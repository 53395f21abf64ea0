"""A YAML file read as plain mappings and lists; what is wrong with its syntax told with file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import StudyFileError


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses duplicate keys and reads 1e-3 as the number it is in YAML 1.2."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_mapping(path: Path, name: str) -> dict[Any, Any]:
    """The one mapping a YAML file holds; `name` is how errors call the file.

    Raises:
        StudyFileError: not readable, not YAML (with the line), a duplicate key, or no mapping.
    """
    try:
        document = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise StudyFileError(name, "", f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    except yaml.MarkedYAMLError as error:
        where = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        raise StudyFileError(where, "", str(error.problem)) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise StudyFileError(name, "", f"is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict):
        held = "is empty" if document is None else f"holds a {type(document).__name__}"
        raise StudyFileError(name, "", f"{held}; a study file is a mapping of keys such as study, workload, target")
    return document
