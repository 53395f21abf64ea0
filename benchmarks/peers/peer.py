"""One contestant in a process of its own: `python peer.py PEER TASK FOLDER OUT` writes OUT/points.json.

FOLDER is the task's; OUT gets the model files. A point is a "file" with a "label" and the "seconds" since the start after which it
was there; "timeline" is what a search measured itself, trial by trial. Wall and processor seconds count from the process's start, and
a contestant that is called again with the same OUT goes on: points and seconds add up.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from tools import Kit

RATIOS = (0.3, 0.5, 0.7)
EPOCHS = 10
Point = dict[str, Any]


def nncf(kit: Kit, options: argparse.Namespace) -> Iterator[Point]:
    """`nncf.quantize`, everything at its default."""
    yield point("int8", kit.saved(kit.quantized(kit.reference), "int8"))


def nncf_accuracy(kit: Kit, options: argparse.Namespace) -> Iterator[Point]:
    """`nncf.quantize_with_accuracy_control`, half a point allowed."""
    yield point("int8-control", kit.saved(kit.quantized(kit.reference, max_drop=0.005), "int8-control"))


def onnxruntime(kit: Kit, options: argparse.Namespace) -> Iterator[Point]:
    """`quantize_static` with two ways to find ranges."""
    for method in ("MinMax", "Entropy"):
        yield point(method, kit.onnxruntime(method))


def torch_pruning(kit: Kit, options: argparse.Namespace) -> Iterator[Point]:
    """Channels removed and fine-tuned, each then quantized by NNCF too."""
    for ratio in options.ratios:
        path = kit.exported(kit.pruned(ratio, options.epochs), f"pruned-{ratio}")
        yield point(f"-{ratio:.0%}", path)
        yield point(f"-{ratio:.0%}, int8", kit.saved(kit.quantized(path), f"pruned-{ratio}-int8"))


def optuna(kit: Kit, options: argparse.Namespace) -> Iterator[Point]:
    """TPE over ratio, bits and epochs: the loop that is written in an hour. Its front on validation is what it hands in."""
    import optuna

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        ratio = trial.suggest_float("ratio", 0, 0.8, step=0.1)
        integers = trial.suggest_categorical("int8", [False, True])
        epochs = trial.suggest_int("epochs", 1, options.epochs) if ratio else 0
        label = f"trial-{trial.number}"
        path = kit.exported(kit.pruned(ratio, epochs), label)
        if integers:
            path = kit.saved(kit.quantized(path), f"{label}-int8")
        found = kit.measured(path)
        for key, value in ({"path": str(path), "seconds": seconds()} | found).items():
            trial.set_user_attr(key, value)
        return found["drop"], found["speedup"]

    sampler = optuna.samplers.TPESampler(seed=len(list(options.out.glob("trial-*.xml"))))
    storage = f"sqlite:///{options.out / 'optuna.db'}"
    study = optuna.create_study(
        storage=storage, study_name="peer", load_if_exists=True, sampler=sampler, directions=["minimize", "maximize"]
    )
    study.optimize(objective, timeout=options.seconds, n_trials=options.trials)
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    TIMELINE.extend({key: trial.user_attrs[key] for key in ("seconds", "drop", "speedup")} for trial in finished)
    for trial in study.best_trials:
        found = point(str(trial.params), Path(trial.user_attrs["path"]))
        yield found | {"seconds": trial.user_attrs["seconds"]}


def floor(kit: Kit, options: argparse.Namespace) -> Iterator[Point]:
    """An eighth of the channels, in floats and in 8 bits: nothing sensible is faster. Its weights are random."""
    path = kit.folder / "floor.onnx"
    yield point("floor, default", path) | {"scored": False}
    yield point("floor, int8", kit.saved(kit.quantized(path), "floor-int8")) | {"scored": False}


PEERS: dict[str, Callable[[Kit, argparse.Namespace], Iterator[Point]]] = {
    "floor": floor,
    "nncf": nncf,
    "nncf-accuracy": nncf_accuracy,
    "onnxruntime": onnxruntime,
    "torch-pruning": torch_pruning,
    "optuna": optuna,
}
STARTED = psutil.Process().create_time()
TIMELINE: list[dict[str, float]] = []
EARLIER: dict[str, Any] = {"wall_s": 0.0, "cpu_s": 0.0, "points": []}


def point(label: str, path: Path) -> Point:
    return {"label": label, "file": str(path.resolve()), "seconds": seconds()}


def seconds() -> float:
    """Since this process started, and of earlier calls that it continues."""
    return time.time() - STARTED + EARLIER["wall_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("task")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of fine-tuning, at most")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="of Torch-Pruning")
    parser.add_argument("--seconds", type=float, default=600, help="of a search")
    parser.add_argument("--trials", type=int, help="of a search")
    options = parser.parse_args()
    torch.set_num_threads(1)
    written = options.out / "points.json"
    if written.exists():
        EARLIER.update({key: json.loads(written.read_text())[key] for key in EARLIER})
    earlier = EARLIER["points"] if options.peer != "optuna" else []  # whose front is that of all its trials
    points = earlier + list(PEERS[options.peer](Kit(options.task, options.folder, options.out), options))
    used = resource.getrusage(resource.RUSAGE_SELF)
    document = {"points": points, "timeline": TIMELINE, "wall_s": seconds()}
    document["cpu_s"] = used.ru_utime + used.ru_stime + EARLIER["cpu_s"]
    written.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
