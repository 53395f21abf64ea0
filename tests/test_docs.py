"""The pages say what is true: generated ones equal the program, examples run, links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import slimfront
import torch
import typer
import yaml
from slimfront.cli import app
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.studies.study_file.load import load_study, shipped_studies
from torch import nn
from torch.utils.data import TensorDataset

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "metrics.md"])
def test_a_generated_page_is_what_the_program_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generator().PAGES[name](), "run `make docs`"


def test_every_command_and_option_has_help() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_the_public_names_are_these() -> None:
    assert slimfront.__all__ == ["Policy", "Store", "StudySpec", "Workload", "load_study"]
    for name in slimfront.__all__:
        assert getattr(slimfront, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = slimfront.Trainer


YAML = [(page, block) for page in PAGES for block in code_blocks(page, "yaml")]
REST = {
    "study": "s",
    "workload": "digits",
    "target": "cpu-openvino",
    "budget": {"trials": 1},
    "objectives": ["flops", "bops"],
}


@pytest.mark.parametrize(("page", "block"), YAML, ids=[page.name for page, _ in YAML])
def test_the_pages_yaml_is_valid(page: Path, block: str, tmp_path: Path) -> None:
    """A target card, a study file, or a part of one: of which the rest is added."""
    written = yaml.safe_load(block)
    is_card, path = "runtime" in written, tmp_path / "page.yaml"
    path.write_text(block if is_card or "study" in written else yaml.safe_dump({**REST, **written}))
    if is_card:
        assert load_target(str(path)).name == written["name"]
    else:
        assert load_study(str(path)).study == written.get("study", "s")


COMMANDS = [
    line.partition("#")[0].partition("|")[0]
    for page in PAGES
    for block in code_blocks(page, "console")
    for line in block.splitlines()
    if line.startswith("slimfront ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_pages_commands_have_these_options(line: str) -> None:
    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line)
    group.commands[name].make_context(name, arguments)  # parsed, not run


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_valid(name: str) -> None:
    assert load_study(name).study == name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def load_model(checkpoint: str = "") -> nn.Module:
    """What the pages leave to the reader."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()


def load_splits() -> list[TensorDataset]:
    """As above."""
    return [TensorDataset(torch.randn(8, 1, 2, 2), torch.arange(8) % 2) for _ in range(4)]


PYTHON = [(page, block) for page in PAGES for block in code_blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page.name for page, _ in PYTHON])
def test_python_on_the_pages_runs(page: Path, block: str) -> None:
    names: dict = {"load_model": load_model, "load_splits": load_splits, "__name__": page.stem}
    exec(compile(block, page.name, "exec"), names)
    if "workload" in names:
        names["workload"]().check()
    if "study" in names:
        assert "sampler_fallback" not in names["study"].user_attrs


def test_a_gru_is_copied_as_the_page_says() -> None:
    [block] = [block for block in code_blocks(ROOT / "docs" / "your-own-model.md", "python") if "nn.GRU" in block]
    names: dict = {}
    exec(block, names)
    trained, x = torch.nn.GRU(5, 7, batch_first=True), torch.randn(3, 4, 5)
    torch.testing.assert_close(names["with_linear_layers"](trained)(x), trained(x)[0])


def test_no_page_is_listed_twice() -> None:
    links = re.findall(r"^- \[.*?\]\((docs/.*?)\)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(links) == len(set(links))
    listed = (ROOT / "README.md").read_text()
    assert all(f"docs/{page.name}" in listed for page in ROOT.glob("docs/*.md"))
