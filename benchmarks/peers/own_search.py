"""slimfront's default search as a contestant: `python own_search.py TASK FOLDER OUT --seconds S` writes OUT/points.json as a peer does.

The study file names workload, target, objectives and budget, nothing else. What is handed in is the front as the search left it,
each file with the settings of the runtime that its bundle's run.py sets. It runs with the Python that has slimfront.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import onnx
import psutil
import yaml
from slimfront import Study, search
from slimfront.hardware_profiles.runtimes.onnx.lowering import PRECISION
from slimfront.studies.files.study_files import MODEL, StudyFiles

TASKS = Path(__file__).with_name("tasks.py")
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--trials", type=int)
    options = parser.parse_args()
    started = psutil.Process().create_time()
    options.out.mkdir(parents=True, exist_ok=True)
    found = searched(options)
    used = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    wall, cpu = time.time() - started, sum(use.ru_utime + use.ru_stime for use in used)
    document = {
        "points": points_of(found, started),
        "timeline": timeline_of(found, started),
        "wall_s": wall,
        "cpu_s": cpu,
    }
    (options.out / "points.json").write_text(json.dumps(document, indent=1))


def searched(options: argparse.Namespace) -> Study:
    budget = {"timeout_s": options.seconds} | ({"trials": options.trials} if options.trials else {})
    document = {
        "study": options.task,
        "workload": f"{TASKS}:workload",
        "workload_options": {"name": options.task, "folder": str(options.folder.resolve())},
        "target": "cpu-openvino",
        "objectives": ["accuracy_drop", "latency_ms", "artifact_bytes"],
        "budget": budget,
    }
    study_file = options.out / "study.yaml"
    study_file.write_text(yaml.safe_dump(document, sort_keys=False))
    storage = f"sqlite:///{options.out / 'study.db'}"
    return search(study_file, storage=storage, artifacts=options.out / "artifacts")


def points_of(study: Study, started: float) -> list[dict[str, Any]]:
    """The front's files."""
    points = []
    ended = {trial.number: trial.finished for trial in study.store.trials(study.name)}
    for number in study.front()["trial"]:
        files = StudyFiles(study.store, study.name)
        path = files.path(files.newest(int(number))[MODEL])
        finished = ended[number]
        if finished is None:
            raise RuntimeError(f"trial {number} is on the front and has not ended")
        label = f"trial {number}"
        seconds = finished.timestamp() - started
        points.append({"label": label, "file": str(path), "seconds": seconds, "config": settings_of(path)})
    return points


def settings_of(path: str) -> dict[str, Any]:
    """OpenVINO's properties as a bundle's run.py sets them."""
    noted = {item.key: item.value for item in onnx.load(path).metadata_props}
    precision = noted.get(PRECISION, "float32")
    hint = {} if precision == "default" else {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    dynamic = 32 if "slimfront.dynamic" in noted else 0
    return {"SNIPPETS_MODE": "DISABLE", "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic, **hint}


def timeline_of(study: Study, started: float) -> list[dict[str, float]]:
    """What the search measured of each finished trial, and when."""
    return [
        {
            "seconds": trial.finished.timestamp() - started,
            "drop": 100 * trial.measurements["accuracy_drop"].value,
            "speedup": trial.measurements["speedup"].value,
        }
        for trial in study.store.trials(study.name)
        if trial.state == "complete" and trial.finished is not None
    ]


if __name__ == "__main__":
    main()
