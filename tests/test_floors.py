"""Imports only point down the floors, and the package list is complete."""

import ast
import subprocess
import sys
import time
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "core": 0,
    "spaces": 1,
    "workloads": 1,
    "compression": 2,
    "hardware_profiles": 2,
    "evaluators": 3,
    "studies": 4,
    "search": 5,
    "api": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
INSIDE = {
    "core": ["core.texts", "core", "core.documents"],
    "spaces": ["spaces.policies", "spaces.models", "spaces.knobs", "spaces"],
    "workloads": ["workloads", ("workloads.builtin", "workloads.torchvision"), "workloads.named", "workloads.load"],
    "compression": [
        "compression",
        ("compression.pruning", "compression.quantization", "compression.packing"),
        "compression.recovery",
        "compression.compress",
        "compression.simulation",
    ],
    "hardware_profiles": [
        (
            "hardware_profiles.runtimes.registry",
            "hardware_profiles.cards.device_card",
            "hardware_profiles.cards.latency_table",
        ),
        "hardware_profiles.cards",
        "hardware_profiles.runtimes",
        "hardware_profiles.bench.lock",
        ("hardware_profiles.runtimes.onnx", "hardware_profiles.runtimes.torch"),
        ("hardware_profiles.runtimes.litert", "hardware_profiles.runtimes.nvidia"),
        "hardware_profiles.profiling.fingerprint",
        "hardware_profiles.bench",
        "hardware_profiles.profiling",
    ],
    "evaluators": ["evaluators"],
    "studies": [
        ("studies.study_file", "studies.artifacts"),
        "studies.store.trial_state",
        "studies.store.tables",
        "studies.store.migrations",
        "studies.store",
        "studies.files",
        ("studies.wording", "studies.terminal"),
        "studies.reference_wording",
        "studies.analysis",
        ("studies.bundles", "studies.inspection"),
        "studies.reports",
    ],
    "search": [
        "search.cluster",
        ("search.sampler.dimensions", "search.sampler.designer"),
        "search.sampler.surrogate",
        "search.sampler",
        ("search.trials.artifacts_folder", "search.confirmation.scoring_task"),
        "search.trials",
        "search.sampler.study_terms",
        ("search.optuna", "search.fidelity"),
        "search",
        ("search.execution", "search.upkeep"),
        "search.confirmation",
        "search.dashboard",
        "search.terminal",
        "search.run",
    ],
    "api": [("api.shown", "api.bundles", "api.audits"), "api.study", "api"],
    "cli": ["cli.options", "cli"],
}
"""The floors inside each room, the lowest first: what a module imports of its own room lies lower, or in the same entry. The
longest entry that a module's dotted path begins with is its own."""

MOST_MODULES = 15
HEAVY = ("optuna", "optuna_dashboard", "ray")
WITHOUT_OPTUNA = ("search.sampler", "search.fidelity", "search.trials")
"""Rooms that do not know Optuna: `search.optuna` adapts them to it."""

PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / Path(*name.split(".")[1:])).glob("*.py"))


def imported(path: Path) -> list[str]:
    """Modules of this package that `path` imports, dotted from the root, and the top names of all others."""
    folder = path.parent.relative_to(ROOT).parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [".".join([".", *base, *module.split(".")]).replace("..", ".") for module in modules]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".")[0] for alias in node.names]
    return found


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)


def entry_of(module: str) -> tuple[int, str]:
    """The inner floor of a module and the entry that says so."""
    floors = [(floor, entry) for floor, entries in enumerate(INSIDE[module.split(".")[0]])
              for entry in ((entries,) if isinstance(entries, str) else entries)]  # fmt: skip
    own = [(floor, entry) for floor, entry in floors if f"{module}.".startswith(f"{entry}.")]
    return max(own, key=lambda found: len(found[1]))


def may_import(here: str, there: str) -> bool:
    room, other = here.split(".")[0], there.split(".")[0]
    if room != other or room not in INSIDE:
        return room == other or FLOORS[other] < FLOORS[room]
    (floor, entry), (lower, its) = entry_of(here), entry_of(there)
    return entry == its or lower < floor


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = dotted(path)
    for module in imported(path):
        assert module != "slimfront", "the package imports itself relatively"
        if module.startswith("."):
            assert may_import(here, module.strip(".")), f"{path} imports {module}"
        elif module in HEAVY:
            assert here.startswith("search."), f"{path} imports {module}"
            assert module == "ray" or not f"{here}.".startswith(WITHOUT_OPTUNA), f"{path} imports {module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {dotted(path): {m.strip(".") for m in imported(path) if m.startswith(".")} for path in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_folders_are_rooms_and_not_halls() -> None:
    folders = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {folder.name: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_the_import_reader_sees_what_it_should() -> None:
    assert ".spaces.policies.policy" in imported(ROOT / "compression" / "pruning" / "prune.py")
    assert "ray" in imported(ROOT / "search" / "execution" / "ray_runner.py")
    assert not may_import("studies.store.store", "studies.analysis.front")
    assert not may_import("spaces.space", "workloads.workload")


def test_the_package_list_names_every_folder() -> None:
    ignored = {".venv", "build", "tests", "benchmarks", "docs", "examples", "demo"}
    folders = {path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")}
    folders = {folder for folder in folders if not ignored.intersection(folder.parts)}
    assert {".".join(["slimfront", *folder.parts]) for folder in folders} == set(PACKAGES)


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = "import sys, slimfront.cli; print([m for m in ('torch', 'ray', 'optuna', 'sqlalchemy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_worker_and_a_search_start_without_libraries_that_few_need() -> None:
    """Each takes a second of every worker's start, on every machine of a cluster; only a search imports Optuna."""
    libraries = (
        "sklearn",
        "torchao",
        "scipy.stats",
        "torchvision",
        "timm",
        "transformers",
        "optuna",
        "optuna_dashboard",
        "ray",
    )
    code = (
        f"import sys, slimfront.search.execution.ray_worker; print([m for m in {libraries} if m in sys.modules]); "
        f"import slimfront.search.run; print([m for m in {libraries} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "['optuna']"]


@pytest.mark.serial
def test_help_is_there_at_once() -> None:
    """Half a second on a quiet machine; three times that, and the best of five, next to other work."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-m", "slimfront", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
        assert "search" in answer.stdout
        if seconds[-1] < 1.5:
            break
    assert min(seconds) < 1.5, f"--help took {min(seconds):.1f} s"
