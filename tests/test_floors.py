"""Imports only point down the floors, and the package list is complete."""

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "console": 0,
    "errors": 0,
    "interrupts": 0,
    "measurement": 0,
    "texts": -1,  # what errors say goes through it
    "threads": 0,
    "validation": 0,
    "documents": 0.5,
    "spaces": 1,
    "workloads": 1,
    "compression": 2,
    "hardware_profiles": 2,
    "evaluators": 3,
    "studies": 4,
    "search": 5,
    "usage": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
HEAVY = ("optuna", "optuna_dashboard", "ray")
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / Path(*name.split(".")[1:])).glob("*.py"))


def imported(path: Path) -> list[str]:
    """Modules of this package that `path` imports, dotted from the root, and the top names of all others."""
    folder = path.parent.relative_to(ROOT).parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            found.append(".".join([".", *base, *(node.module or "").split(".")]).replace("..", "."))
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".")[0] for alias in node.names]
    return found


def floor_of(module: str) -> tuple[str, float]:
    top = module.lstrip(".").split(".")[0]
    return top, FLOORS[top]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in imported(path):
        assert module != "slimfront", "the package imports itself relatively"
        if module.startswith("."):
            top, floor = floor_of(module)
            assert top == here or floor < FLOORS[here], f"{path} imports {module}"
        elif module in HEAVY:
            assert here == "search", f"{path} imports {module}"


def test_the_import_reader_sees_what_it_should() -> None:
    assert ".spaces.policy" in imported(ROOT / "compression" / "prune.py")
    assert "ray" in imported(ROOT / "search" / "distributed.py")


def test_the_package_list_names_every_folder() -> None:
    ignored = {".venv", "build", "tests", "benchmarks", "docs", "demo"}
    folders = {path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")}
    folders = {folder for folder in folders if not ignored.intersection(folder.parts)}
    assert {".".join(["slimfront", *folder.parts]) for folder in folders} == set(PACKAGES)


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = "import sys, slimfront.cli; print([m for m in ('torch', 'ray', 'optuna', 'sqlalchemy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.alone
def test_help_is_there_at_once() -> None:
    """Half a second on a quiet machine; three times that, and the best of five, beside other work."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        told = subprocess.run([sys.executable, "-m", "slimfront", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert "search" in told.stdout
        if seconds[-1] < 1.5:
            break
    assert min(seconds) < 1.5, f"--help took {min(seconds):.1f} s"
