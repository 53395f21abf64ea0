"""A small study that is searched for real in seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from slimfront.studies.study_file.load import load_study
from slimfront.studies.study_file.spec import StudySpec

TINY = Path(__file__).with_name("tiny_workload.py")

STUDY = {
    "study": "tiny",
    "workload": f"{TINY}:workload",
    "target": "cpu-openvino",
    "reference": "float32",  # with the precision of the space below: the same on every processor, and nothing is to be chosen
    "objectives": ["accuracy_drop", "latency_ms"],
    "budget": {"trials": 4},
    "workers": 0,
    "space": {"weight_bits": [4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]},
}


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny study to a file, with whatever is given in place of its keys."""

    def write(**changes: object) -> Path:
        path = tmp_path / "study.yaml"
        document = {**STUDY, **changes}
        if isinstance(document["space"], dict) and "reference" not in changes:
            document["space"] = {"float_precision": ["float32"], **document["space"]}
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.fixture
def tiny_spec(study_file: Callable[..., Path]) -> Callable[..., StudySpec]:
    """The tiny study as a spec."""
    return lambda **changes: load_study(str(study_file(**changes)))
