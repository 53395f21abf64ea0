"""The pages say what is true: generated ones equal the program, examples run, links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest
import slimfront
import torch
import typer
import yaml
from slimfront.cli import app
from slimfront.studies.spec import load_study, shipped_studies

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


@pytest.mark.parametrize("page", ["README.md", "docs/study-file.md"])
def test_the_pages_study_files_are_valid(page: str, tmp_path: Path) -> None:
    blocks = [block for block in code_blocks(ROOT / page, "yaml") if re.search(r"^study:", block, re.MULTILINE)]
    assert blocks
    for block in blocks:
        (tmp_path / "study.yaml").write_text(block)
        assert load_study(str(tmp_path / "study.yaml")).study == yaml.safe_load(block)["study"]


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_valid(name: str) -> None:
    assert load_study(name).study == name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


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


def test_python_on_the_pages_compiles() -> None:
    for page in PAGES:
        for block in code_blocks(page, "python"):
            compile(block, page.name, "exec")
